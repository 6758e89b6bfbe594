"""The files that are measured: each form with its typical dtypes, on a small model and on one large weight."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[2]))

from jaxq.formats.registry import make_format
from jaxq.forms.registry import find_form
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.job import Gather, Job
from jaxq.pipeline.quantize import quantize_model
from tests.forms.test_gather import IDS, tables
from tests.support.forms import every_reader, in_place
from tests.support.models import FFN, build, node, tokens, value, weight
from tests.support.running import run, save
from tests.support.unpacked import dequantized

ROWS, COLUMNS = 2048, 8192


@dataclass(frozen=True)
class Case:
    """One row of the table; its files differ in ``accuracy_level`` where that is in the file.

    Attributes:
        form, dtype, block_size: As in `jaxq.pipeline.job.Job`.
        half: The model is in float16.
        gather_axis: The model is a table of Gather, blocked along this axis, and a weight.
    """

    form: str
    dtype: str
    block_size: int
    half: bool = False
    gather_axis: int | None = None

    @property
    def name(self) -> str:
        """As "dq int4 32"."""
        extra = " half" * self.half + (f" table, axis {self.gather_axis}" if self.gather_axis is not None else "")
        return f"{self.form} {self.dtype} {self.block_size}{extra}"


CASES = [
    *[Case("dq", d, b) for d, b in (("int4", 32), ("int4", 128), ("int4", -1), ("uint4", 32))],
    *[Case("dq", "int8", b) for b in (32, 128, -1)],
    Case("dq", "int4", 32, half=True),
    Case("dq", "int4", 32, gather_axis=1),
    Case("qdq", "int4", 32),
    Case("column_major", "int4", 32),
    *[Case("matmulnbits", d, 32) for d in ("int4", "uint4", "int8", "int2")],
    Case("matmulnbits", "int4", 32, half=True),
    *[Case("matmulnbits", d, 32, gather_axis=1) for d in ("int4", "int8")],
    Case("nvfp4_standard", "nvfp4", 16),
    *[Case("mx_standard", d, 32) for d in ("mxfp8", "mxfp4")],
    *[Case("portable", d, b) for d, b in (("nvfp4", 16), ("mxfp8", 32), ("mxfp4", 32))],
    Case("trt", "int4", 32),
    Case("trt", "mxfp8", 32),
    Case("trt_qdq", "int4", 32),
]


def large() -> onnx.ModelProto:
    """One product."""
    weights = {"w": weight(ROWS, COLUMNS)}
    return build([node("MatMul", "x w", "y")], weights, {"y": ("n", COLUMNS)}, [value("x", ("n", ROWS))])


def write_case(case: Case, folder: Path) -> None:
    """Writes the case's files, its inputs and the outputs that its dequantized weights give."""
    dtype = np.float16 if case.half else np.float32
    proto = every_reader(dtype) if case.gather_axis is None else tables(dtype)
    feeds = {"x": tokens(5, FFN).astype(dtype)} if case.gather_axis is None else IDS
    source = save(proto, folder, "source.onnx")
    for level, name in ((1, "exact"), (4, "default")):
        _quantize(case, source, folder / f"{name}.onnx", level)
    weights = dequantized(onnx.load(folder / "exact.onnx"))
    expected = run(in_place(proto, weights), feeds)
    np.savez(folder / "feeds.npz", allow_pickle=False, **feeds)
    np.savez(folder / "expected.npz", *expected)
    source.unlink()


def write_large(case: Case, source: Path, folder: Path) -> None:
    """Writes the large weight in the case's form, for its speed."""
    for level, name in ((1, "exact"), (4, "default")):
        _quantize(case, source, folder / f"large_{name}.onnx", level)


def _quantize(case: Case, source: Path, target: Path, accuracy_level: int) -> None:
    fmt = make_format(case.dtype, case.block_size)
    gather = None if case.gather_axis is None else Gather(case.gather_axis, fmt)
    spec = MethodSpec("rtn_dq", fmt)
    cache = target.parent / "moments"
    job = Job(source, target, spec, find_form(case.form, accuracy_level), cache=cache, gather=gather)
    quantize_model(job)
