"""``python -m jaxq.run``: one quantization from a Hydra configuration, or a sweep of them with ``-m``."""

import sys

from jaxq.harness.interrupt import exit_on_interrupt


def main() -> None:
    """The command line: exit code 0, 2 with one sentence on bad input, 130 after Ctrl-C.

    JAXQ_TRACEBACK=1 shows the traceback behind a sentence.
    """
    with exit_on_interrupt():  # while modules are imported, too
        from jaxq.harness.hydra_door import run

        run(sys.argv[1:])


if __name__ == "__main__":
    main()
