"""The one exception that jaxq raises for bad input."""


class JaxqError(ValueError):
    """Bad input; the message is one sentence with the offending value and what to do.

    The command line prints the sentence and exits with code 2; library users can catch it as a ``ValueError``.
    """
