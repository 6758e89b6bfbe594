"""``python -m jaxq.run``: one quantization from a Hydra configuration, or a sweep of them with ``-m``."""

import os
import sys

from jaxq.harness.interrupt import EXIT_CODE, INTERRUPTED, lasting_interrupts


def main() -> None:
    """The command line: exit code 0, 2 with one sentence on bad input, 130 after Ctrl-C.

    JAXQ_TRACEBACK=1 shows the traceback behind a sentence.
    """
    try:
        with lasting_interrupts():  # while modules are imported, too
            from jaxq.harness.command import execute

            execute()
    except KeyboardInterrupt:
        if os.environ.get("JAXQ_TRACEBACK") == "1":
            raise
        print(f"error: {INTERRUPTED}", file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
