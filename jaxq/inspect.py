"""``python -m jaxq.inspect model.onnx``: what of a model is quantized, how, and how many bits a weight takes in all."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from jaxq.errors import JaxqError
from jaxq.readback.inspection import inspect_model, to_json
from jaxq.readback.inspection_table import print_inspection

_TRACEBACK = "JAXQ_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input (JAXQ_TRACEBACK=1 shows the traceback)."""
    if os.environ.get(_TRACEBACK) == "1":
        _main(arguments)
        return
    try:
        _main(arguments)
    except JaxqError as error:
        sys.exit(_fail(str(error)))
    except BrokenPipeError:  # as of `| head`; what is buffered goes nowhere when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(_fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted"))
    except Exception as error:  # not bad input that jaxq knows of, perhaps its own fault
        sys.exit(_fail(f"{type(error).__name__}: {' '.join(str(error).split())}; {_TRACEBACK}=1 shows where"))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as jaxq does."""

    def error(self, message: str) -> NoReturn:
        raise JaxqError(f"{message}; {self.prog} --help shows what can be given")


def _main(arguments: Sequence[str] | None) -> None:
    parser = _Parser("jaxq.inspect", description="Shows what of an ONNX model is quantized, and how.")
    parser.add_argument("model", type=Path, help="an .onnx file")
    parser.add_argument("--all", action="store_true", help="show every weight")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    inspection = inspect_model(given.model)
    if given.json:
        print(json.dumps(to_json(inspection), indent=1), flush=True)
    else:
        print_inspection(inspection, Console(), every=given.all)


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
