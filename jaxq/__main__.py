"""``jaxq``, or ``python -m jaxq``: the command line."""

import sys

from jaxq.harness.interrupt import exit_on_interrupt


def main() -> None:
    """The command line: exit code 0, 2 with one sentence on bad input, 130 after Ctrl-C.

    JAXQ_TRACEBACK=1 shows the traceback behind a sentence.
    """
    with exit_on_interrupt():  # while modules are imported, too
        from jaxq.harness.app import start

        start(sys.argv[1:])


if __name__ == "__main__":
    main()
