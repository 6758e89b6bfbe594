"""``python -m jaxq.inspect model.onnx``: which weights are quantized, how, and how many bits a weight takes."""

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
    except BrokenPipeError:  # as of `| head`; Python would write its buffer at exit, so stdout goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.exit(_fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted"))
    except Exception as error:  # no known kind of bad input: perhaps a bug of jaxq
        sys.exit(_fail(f"{type(error).__name__}: {' '.join(str(error).split())}; {_TRACEBACK}=1 shows where"))


class _Parser(argparse.ArgumentParser):
    """Raises a JaxqError on bad arguments."""

    def error(self, message: str) -> NoReturn:
        raise JaxqError(f"{message}; {self.prog} --help shows what can be given")


def _main(arguments: Sequence[str] | None) -> None:
    parser = _Parser("jaxq.inspect", description="Shows which weights of an ONNX model are quantized, and how.")
    parser.add_argument("model", type=Path, help="an .onnx file")
    parser.add_argument("--all", action="store_true", help="show every weight")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    inspection = inspect_model(options.model)
    if options.json:
        print(json.dumps(to_json(inspection), indent=1), flush=True)
    else:
        print_inspection(inspection, Console(), every=options.all)


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
