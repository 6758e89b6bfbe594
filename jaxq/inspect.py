"""``python -m jaxq.inspect model.onnx``: which weights are quantized, how, and how many bits a weight takes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxq.errors import JaxqError
from jaxq.harness.failures import exit_with_sentence, fail
from jaxq.harness.interrupt import EXIT_CODE
from jaxq.readback.show import show_models


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input (JAXQ_TRACEBACK=1 shows the traceback)."""
    try:
        exit_with_sentence(lambda: _main(arguments))
    except KeyboardInterrupt:
        fail("interrupted")
        sys.exit(EXIT_CODE)


class _Parser(argparse.ArgumentParser):
    """Raises a JaxqError on bad arguments."""

    def error(self, message: str) -> NoReturn:
        raise JaxqError(f"{message}; {self.prog} --help shows what can be given")


def _main(arguments: Sequence[str] | None) -> None:
    parser = _Parser("jaxq.inspect", description="Shows which weights of an ONNX model are quantized, and how.")
    parser.add_argument("model", type=Path, help="an .onnx file, or a folder with models")
    parser.add_argument("--all", action="store_true", help="show every weight")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    show_models(options.model, options.all, options.json)


if __name__ == "__main__":
    main()
