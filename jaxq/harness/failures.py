"""How a command ends: one sentence on standard error and an exit code, whatever went wrong."""

import os
import sys
from collections.abc import Callable

from jaxq.errors import JaxqError

TRACEBACK = "JAXQ_TRACEBACK"
"""Environment variable: "1" shows the traceback behind a sentence."""

BAD_INPUT = 2
"""Exit code of a command that was refused or failed."""

CLOSED_PIPE = 1
"""Exit code where the reader of the output is gone, as with ``| head``."""


def exit_with_sentence(work: Callable[[], None]) -> None:
    """Calls a function; where it fails, prints one sentence and ends the process with an exit code.

    Args:
        work: The command. `KeyboardInterrupt` and `SystemExit` pass.
    """
    if os.environ.get(TRACEBACK) == "1":
        work()
        return
    try:
        work()
        sys.stdout.flush()
    except JaxqError as error:
        sys.exit(fail(str(error)))
    except SystemExit:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _print_nowhere()
        raise
    except BrokenPipeError:
        _print_nowhere()
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        sys.exit(fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")))
    except Exception as error:  # no known kind of bad input: perhaps a bug of jaxq
        sys.exit(fail(f"{type(error).__name__}: {' '.join(str(error).split())}; {TRACEBACK}=1 shows where"))


def _print_nowhere() -> None:
    """Lets standard output go nowhere: Python would write its buffer at exit, to a reader that is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(sentence: str) -> int:
    """Prints an error and returns the exit code for it."""
    print(f"error: {sentence}", file=sys.stderr)
    return BAD_INPUT
