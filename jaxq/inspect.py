"""``python -m jaxq.inspect model.onnx``: what of a model is quantized, how, and how many bits a weight takes in all."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxq.declined import FLOAT_TYPES
from jaxq.errors import JaxqError
from jaxq.graph import tidy
from jaxq.model_file import data_files, load_model
from jaxq.readback import FoundWeight, Unread, read_back

_TRACEBACK = "JAXQ_TRACEBACK"
_SHOWN = 5


@dataclass(frozen=True)
class FloatWeight:
    """A tensor of floats that is not quantized."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect_model` found in a file.

    Attributes:
        path: The file.
        file_bytes: Its size, external data included.
        opset, ir_version: Versions of ONNX's operators and of the file format.
        domains: Other sets of operators, with their versions.
        weights: Quantized weights, in graph order.
        unread: What is quantized and was not understood.
        floats: All other float tensors of more than one number, the largest first.
    """

    path: Path
    file_bytes: int
    opset: int
    ir_version: int
    domains: Mapping[str, int]
    weights: tuple[FoundWeight, ...]
    unread: tuple[Unread, ...]
    floats: tuple[FloatWeight, ...]

    @property
    def distinct(self) -> tuple[FoundWeight, ...]:
        """Quantized weights, those that nodes read in two ways once."""
        return tuple({w.tensors[0]: w for w in reversed(self.weights)}.values())[::-1]

    @property
    def quantized_size(self) -> int:
        """Number of quantized weights' elements."""
        return sum(w.size for w in self.distinct)

    @property
    def quantized_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(w.nbytes for w in self.distinct)

    @property
    def float_bytes(self) -> int:
        """Bytes of the floats that are left."""
        return sum(f.nbytes for f in self.floats)

    @property
    def bits_per_quantized_weight(self) -> float | None:
        """Codes, scales and zero points; None where nothing is quantized."""
        return 8 * self.quantized_bytes / self.quantized_size if self.weights else None

    @property
    def weight_bytes(self) -> int:
        """Bytes that the file holds of all its weights, quantized or not."""
        return sum(x.nbytes for x in (*self.unread, *self.floats)) + sum(w.file_nbytes for w in self.distinct)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits in the file for each element of all weights; None where there are none."""
        size = sum(x.size for x in (*self.distinct, *self.unread, *self.floats))
        return 8 * self.weight_bytes / size if size else None


def inspect_model(path: Path) -> Inspection:
    """What of a model is quantized, and how; of any ONNX file.

    Args:
        path: The file; no more of its weights is read than is needed to tell copies.

    Raises:
        JaxqError: the file cannot be read, or is not an ONNX model.
    """
    model = load_model(path)
    file_bytes = sum(p.stat().st_size for p in (path, *data_files(path, model)))
    tidy(model)
    found = read_back(model)
    floats = [
        FloatWeight(str(value.name), tensor.dtype.numpy().name, tuple(tensor.shape.numpy()), tensor.size, tensor.nbytes)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if (tensor := value.const_value) is not None
        and tensor.dtype in FLOAT_TYPES
        and tensor.size > 1
        and value not in found.used
    ]
    return Inspection(
        path=path,
        file_bytes=file_bytes,
        opset=model.opset_imports.get("", 0),
        ir_version=model.ir_version,
        domains={name: version for name, version in model.opset_imports.items() if name},
        weights=found.weights,
        unread=found.unread,
        floats=tuple(sorted(floats, key=lambda f: -f.nbytes)),
    )


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


def print_inspection(inspection: Inspection, console: Console, every: bool = False) -> None:
    """Shows an inspection.

    Args:
        inspection: What was found.
        console: Where.
        every: Each weight by itself too.
    """
    versions = {"opset": inspection.opset, "ir_version": inspection.ir_version, **inspection.domains}
    facts = [_mb(inspection.file_bytes), *(f"{name} {version}" for name, version in versions.items())]
    _print(console, f"{inspection.path}: {', '.join(facts)}")
    if inspection.weights:
        console.print(_kinds(inspection.distinct))
        if every:
            console.print(_every(inspection.weights))
    for line in (*_totals(inspection), *_left(inspection, every), *_unread(inspection, every)):
        _print(console, line)


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _kinds(weights: Sequence[FoundWeight]) -> Table:
    """A row for each form, type and block size."""
    kinds: dict[tuple[str, str, int], list[FoundWeight]] = {}
    for w in weights:
        kinds.setdefault((w.form, w.dtype, w.block_size), []).append(w)
    table = _table("form", "dtype", "block", "weights", "elements", "MB", "bits each", right=2)
    for (form, dtype, block), members in kinds.items():
        size, nbytes = sum(w.size for w in members), sum(w.file_nbytes for w in members)
        bits = 8 * sum(w.nbytes for w in members) / size
        row = (_block(block), str(len(members)), f"{size:,}", f"{nbytes / 1e6:.3f}", f"{bits:.3f}")
        table.add_row(form, dtype, *row)
    return table


def _every(weights: Sequence[FoundWeight]) -> Table:
    table = _table("weight", "read by", "form", "dtype", "block", "shape", "bits", right=4)
    for w in weights:
        readers = ", ".join(f"{w.ops.count(op)} {op}" if w.ops.count(op) > 1 else op for op in dict.fromkeys(w.ops))
        table.add_row(w.name, readers, w.form, w.dtype, _block(w.block_size), _shape(w.shape), f"{w.bits:.3f}")
    return table


def _table(*names: str, right: int) -> Table:
    """An empty table; the columns from number ``right`` on hold numbers."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i >= right else "left", overflow="fold")
    return table


def _totals(inspection: Inspection) -> Iterator[str]:
    weights = inspection.distinct
    if bits := inspection.bits_per_quantized_weight:
        facts = f"{_count(inspection.quantized_size, 'element')}, {bits:.3f} bits each"
        yield f"quantized: {_count(len(weights), 'weight')}, {facts}"
    else:
        yield "nothing that is understood is quantized" if inspection.unread else "nothing is quantized"
    if kept := [w for w in weights if w.file_nbytes > w.nbytes]:
        nbytes = _mb(sum(w.file_nbytes for w in kept))
        yield f"held as floats between quantizer and dequantizer: {_count(len(kept), 'weight')}, {nbytes}"
    if (all_bits := inspection.bits_per_weight) is not None:
        yield f"all weights: {_mb(inspection.weight_bytes)}, {all_bits:.3f} bits each"


def _left(inspection: Inspection, every: bool) -> Iterator[str]:
    floats = inspection.floats
    if floats:
        yield f"left in float: {_count(len(floats), 'tensor')}, {_mb(inspection.float_bytes)}"
    shown = floats if every else floats[:_SHOWN]
    for f in shown:
        yield f"  {_mb(f.nbytes)} {f.dtype} {_shape(f.shape)} {f.name}"
    if rest := floats[len(shown) :]:
        yield f"  {_mb(sum(f.nbytes for f in rest))} in {len(rest)} more"


def _unread(inspection: Inspection, every: bool) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for each in inspection.unread:
        reasons.setdefault(each.reason, []).append(each.name)
    for reason, names in reasons.items():
        shown = names if every else names[:1]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        yield f"not understood: {', '.join(shown)}{more}: {reason}"


def to_json(inspection: Inspection) -> dict[str, object]:
    """An inspection as JSON holds it; sizes in elements and bytes."""
    return {
        "path": str(inspection.path),
        "file_bytes": inspection.file_bytes,
        "opset": inspection.opset,
        "ir_version": inspection.ir_version,
        "domains": dict(inspection.domains),
        "quantized_weights": len(inspection.distinct),
        "quantized_size": inspection.quantized_size,
        "quantized_bytes": inspection.quantized_bytes,
        "bits_per_quantized_weight": inspection.bits_per_quantized_weight,
        "float_bytes": inspection.float_bytes,
        "weight_bytes": inspection.weight_bytes,
        "bits_per_weight": inspection.bits_per_weight,
        "weights": [_weight_json(w) for w in inspection.weights],
        "floats": [
            {"name": f.name, "dtype": f.dtype, "shape": list(f.shape), "nbytes": f.nbytes} for f in inspection.floats
        ],
        "not_understood": [{"name": u.name, "reason": u.reason, "nbytes": u.nbytes} for u in inspection.unread],
    }


def _weight_json(w: FoundWeight) -> dict[str, object]:
    names = ("name", "form", "dtype", "block_size", "axis", "transposed", "nbytes", "file_nbytes", "copies", "bits")
    facts = {name: getattr(w, name) for name in names}
    return facts | {"shape": list(w.shape), "nodes": list(w.nodes), "ops": list(w.ops)}


def _block(size: int) -> str:
    return {-1: "channel", 0: "tensor"}.get(size, str(size))


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.3f} MB"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
