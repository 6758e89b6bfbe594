"""Print an inspection on the terminal."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxq.readback.found_weight import FoundWeight
from jaxq.readback.inspection import Inspection

_SHOWN = 5


def print_inspection(inspection: Inspection, console: Console, every: bool = False) -> None:
    """Prints an inspection.

    Args:
        inspection: From `jaxq.readback.inspection.inspect_model`.
        console: Where it is printed.
        every: Print each weight too, not only the totals.
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
    if stored := [w for w in weights if w.file_nbytes > w.nbytes]:
        nbytes = _mb(sum(w.file_nbytes for w in stored))
        yield f"stored as floats between quantizer and dequantizer: {_count(len(stored), 'weight')}, {nbytes}"
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
    for unread in inspection.unread:
        reasons.setdefault(unread.reason, []).append(unread.name)
    for reason, names in reasons.items():
        shown = names if every else names[:1]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        yield f"not understood: {', '.join(shown)}{more}: {reason}"


def _block(size: int) -> str:
    return {-1: "channel", 0: "tensor"}.get(size, str(size))


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.3f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
