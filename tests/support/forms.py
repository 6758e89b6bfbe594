"""A model with each kind of node that can read a weight, and what onnxruntime makes of a file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from jaxq.formats.registry import DTYPES, WeightFormat, make_format
from jaxq.forms.registry import FORMS
from tests.support import models
from tests.support.models import FFN, build, node, vector, weight
from tests.support.reference import evaluate
from tests.support.running import RUNTIME, run, with_weights

GROUPS = (("plain", "straight", "crosswise", "bare"), ("shared", "table"))
"""Weights that read the same activations, in the order of the graph."""
NAMES = ("plain", "straight", "shared", "table", "crosswise", "bare")
READS = {
    **{"a": ("plain", False), "b": ("straight", False), "c": ("crosswise", True), "d": ("bare", True)},
    **{"e": ("shared", False), "f": ("shared", False), "g": ("table", True), "h": ("table", True)},
}
"""Outputs of the products: the weight that they read, and whether they read it as [c_out, c_in]."""
BLOCK_SIZES = (32, 64, -1, 16, 128, 256)


def every_reader(dtype: type = np.float32, c_in: int = FFN, c_out: int = 32) -> onnx.ModelProto:
    """Each kind of node that can read a weight; 96 rows are whole blocks of 16 and 32, ragged ones of 64 and above."""
    nodes = [
        node("MatMul", "x plain", "a"),
        node("Gemm", "x straight bias", "b", transB=0),
        node("Gemm", "x crosswise bias", "c", transB=1),
        node("Gemm", "x bare", "d", transB=1),
        node("MatMul", "x shared", "e"),
        node("Neg", "x", "negative"),
        node("MatMul", "negative shared", "f"),
        node("Gemm", "x table", "g", transB=1),
        node("Gemm", "negative table bias", "h", transB=1),
        node("Concat", "a b c e f g h", "y", axis=-1),
    ]
    weights = every_weight(dtype, c_in, c_out)
    weights |= {name: np.ascontiguousarray(weights[name].T) for name in ("crosswise", "bare", "table")}
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outputs = {"y": ("n", 7 * c_out), "d": ("n", c_out)}
    x = models.value("x", ("n", c_in), kind)
    return build(nodes, weights | {"bias": vector(c_out).astype(dtype)}, outputs, [x], dtype=kind)


def every_weight(dtype: type = np.float32, c_in: int = FFN, c_out: int = 32) -> dict[str, np.ndarray]:
    """The weights of `every_reader` as [c_in, c_out]."""
    return {name: weight(c_in, c_out, seed=i, dtype=dtype) for i, name in enumerate(NAMES)}


def in_place(source: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The float model with these weights [c_in, c_out], turned where it holds them turned."""
    turned = {
        n.input[1]
        for n in source.graph.node
        if n.op_type == "Gemm" and any(a.name == "transB" and a.i for a in n.attribute)
    }
    return with_weights(source, {name: w.T if name in turned else w for name, w in weights.items()})


def run_form(
    form: str, model: Path | onnx.ModelProto, feeds: Mapping[str, np.ndarray], *outputs: str
) -> list[np.ndarray]:
    """In onnxruntime where it has the operators, in the reference evaluator where not."""
    return (run if FORMS[form].runs else evaluate)(model, feeds, *outputs)


def skip_old(form: str, fmt: WeightFormat, dtype: type = np.float32) -> None:
    """Skips a test where this onnxruntime cannot run such a file: it lacks a kernel, or its optimizer has a bug."""
    half = dtype == np.float16
    oldest = (0, 0)
    if form == "matmulnbits" and fmt.code_bits == 8:
        oldest = (1, 23)
    elif form == "matmulnbits" and fmt.dtype.endswith("int2"):
        oldest = (1, 28) if half else (1, 24)
    elif form in ("qdq", "column_major") and fmt.block_size == -1 and half:
        oldest = (1, 30)
    elif form == "column_major" and fmt.block_size == -1:
        oldest = (1, 28)
    if oldest > RUNTIME:
        pytest.skip(f"onnxruntime runs such files from {oldest[0]}.{oldest[1]}")


def pairings(form: str) -> list[WeightFormat]:
    """Every dtype of a form and every block size, each at least once, and the same of all forms where they can."""
    block_sizes, found = FORMS[form].block_sizes, []
    for dtype, sizes in block_sizes.items():
        block = BLOCK_SIZES[DTYPES.index(dtype) % len(BLOCK_SIZES)]
        found.append(make_format(dtype, block if block in sizes else sizes[0]))
    for block in BLOCK_SIZES:
        if block not in [fmt.block_size for fmt in found]:
            found += [make_format(dtype, block) for dtype, sizes in block_sizes.items() if block in sizes][:1]
    return found


def fused(path: Path) -> dict[str, int]:
    """How often each operator stands in the model as onnxruntime runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = [f"{n.domain}:{n.op_type}" for n in onnx.load(options.optimized_model_filepath).graph.node]
    return {op: found.count(op) for op in set(found)}
