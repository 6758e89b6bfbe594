"""Blocks of any size, in the forms that store them: beside onnxruntime, and beside rounding in numpy."""

from typing import Any

import numpy as np
import onnx
import pytest

from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.forms.dq import is_fused
from jaxq.pipeline.job import Gather
from jaxq.readback.inspection import inspect_model
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.forms import every_reader, every_weight, fused, in_place
from tests.support.models import FFN, HIDDEN, tokens
from tests.support.running import quantize, relative, run, save
from tests.support.unpacked import dequantized

SIZES = (2, 8, 24, 40, 48, 72, 512)
DTYPES = ("int4", "uint4", "int8", "int3")
FORMS = ("dq", "qdq", "column_major")
X = {"x": tokens(5, FFN)}


def cases() -> list[Any]:
    """Each form with each size, and the dtypes in turn."""
    kinds = {form: [d for d in DTYPES if form != "qdq" or d != "int3"] for form in FORMS}
    return [(form, size, kinds[form][i % len(kinds[form])]) for form in FORMS for i, size in enumerate(SIZES)]


@pytest.mark.parametrize(("form", "size", "dtype"), cases())
def test_onnxruntime_gives_what_the_codes_say(form, size, dtype, tmp_path):
    """Most of these sizes leave a ragged block at the end of 96 rows; 512 are more rows than there are."""
    proto, target = every_reader(), tmp_path / "out.onnx"
    outcome = quantize(save(proto, tmp_path), target, fmt=make_format(dtype, size), form=form)
    assert {(layer.dtype, layer.block_size) for layer in outcome.layers} == {(dtype, size)}
    onnx.checker.check_model(str(target), full_check=True)
    weights = dequantized(onnx.load(target))
    for got, wanted in zip(run(target, X), run(in_place(proto, weights), X), strict=True):
        assert relative(got, wanted) < 2e-6 + 0.02 * (form == "dq" and is_fused(size))  # fused: activations in 8 bits
    if dtype.startswith("int"):
        for name, w in every_weight().items():
            np.testing.assert_allclose(weights[name], nearest(w, dtype, size), rtol=1e-6, atol=1e-9)


def nearest(w: np.ndarray, dtype: str, size: int) -> np.ndarray:
    """The nearest values of symmetric integers, each block by itself."""
    most, blocks = 2 ** (int(dtype[-1]) - 1) - 1, []
    for start in range(0, len(w), size):
        block = w[start : start + size]
        step = np.abs(block).max(axis=0) / np.float32(most)
        blocks.append(np.clip(np.round(block / step), -most - 1, most) * step.astype(np.float64))
    return np.concatenate(blocks)


@pytest.mark.parametrize("size", [8, 16, 24, 32, 48, 64, 96, 512, -1])
def test_the_sizes_that_onnxruntime_fuses(size, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.gemm(), tmp_path), target, fmt=IntegerFormat(size))
    assert (":DequantizeLinear" not in fused(target)) == is_fused(size)


@pytest.mark.parametrize("form", ["dq", "column_major"])
@pytest.mark.parametrize("method", ["best", "awq_full"])
def test_searched_scales_and_narrow_ones(form, method, tmp_path):
    """GPTQ, AWQ's scales and clip ratios, and scales in float8, in blocks that do not divide the axis."""
    proto, target = models.attention(), tmp_path / "out.onnx"
    x = {"x": tokens(4, 10, HIDDEN)}
    outcome = quantize(
        save(proto, tmp_path), target, method, [Batch(x)], IntegerFormat(24, scale_dtype=FLOAT8), form=form
    )
    assert relative(run(target, x)[0], run(proto, x)[0]) < 0.2
    assert {layer.scale_dtype for layer in outcome.layers} == {FLOAT8}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", [0, 1])
def test_tables(form, axis, tmp_path):
    proto, target = models.embedding(), tmp_path / "out.onnx"
    fmt = IntegerFormat(24)
    quantize(save(proto, tmp_path), target, fmt=fmt, form=form, gather=Gather(axis, fmt))
    feeds = {"ids": np.arange(6).reshape(2, 3)}
    wanted = run(in_place(proto, dequantized(onnx.load(target))), feeds)[0]
    assert relative(run(target, feeds)[0], wanted) < 2e-6


@pytest.mark.parametrize("form", FORMS)
def test_inspect_reads_them(form, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.gemm(), tmp_path), target, fmt=IntegerFormat(24), form=form)
    assert {found.block_size for found in inspect_model(target).weights} == {24}
