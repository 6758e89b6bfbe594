"""NVFP4 and MX: the standard file and the portable one hold the same bytes and give the same numbers."""

import ml_dtypes
import numpy as np
import onnx
import pytest

from jaxq.formats.registry import make_format
from tests.support.forms import READS, every_reader
from tests.support.models import tokens
from tests.support.reference import evaluate
from tests.support.running import initializers, quantize, relative, run, save
from tests.support.unpacked import E2M1, unpack

STANDARD = {"nvfp4": ("nvfp4_standard", 16), "mxfp4": ("mx_standard", 32), "mxfp8": ("mx_standard", 32)}
SHAPES = [
    pytest.param(96, 32, np.float32, id="whole blocks"),
    pytest.param(90, 31, np.float32, id="ragged"),
    pytest.param(45, 31, np.float32, id="odd number of weights"),
    pytest.param(7, 3, np.float32, id="less than a block"),
    pytest.param(45, 31, np.float16, id="half precision"),
]


def written(dtype, c_in, c_out, kind, folder):
    """The standard and the portable file of one model."""
    source = save(every_reader(kind, c_in, c_out), folder)
    name, block = STANDARD[dtype]
    files = [folder / f"{form}.onnx" for form in (name, "portable")]
    for path, form in zip(files, (name, "portable"), strict=True):
        quantize(source, path, fmt=make_format(dtype, block), form=form)
        onnx.checker.check_model(str(path), full_check=True)
    return files


def raw(model):
    """Bytes of codes and scales, by name."""
    wanted = [t for t in model.graph.initializer if "_quantized" in t.name or "_scale" in t.name]
    return {t.name: t.raw_data for t in wanted}


def floats(model, name, c_in):
    """A weight [c_out, c_in] in float32 from a standard file's bytes, one step of rounding after the other."""
    held, (codes,) = initializers(model), [t for t in model.graph.initializer if t.name == f"{name}_quantized"]
    q = held[codes.name].astype(np.float32)
    if codes.data_type == onnx.TensorProto.FLOAT4E2M1:
        q = E2M1[unpack(np.frombuffer(codes.raw_data, np.uint8), 4)[: q.size]].reshape(q.shape).astype(np.float32)
    s = held[f"{name}_scale"]
    if f"{name}_scale_2" in held:
        s, block = s.astype(np.float32) * held[f"{name}_scale_2"], 16
    else:
        s, block = np.ldexp(np.float32(1), s.view(np.uint8).astype(np.int32) - 127), 32
    return q * np.repeat(s, block, axis=1)[:, :c_in]


@pytest.mark.parametrize("dtype", STANDARD)
@pytest.mark.parametrize(("c_in", "c_out", "kind"), SHAPES)
def test_both_files_hold_the_same_bytes_and_give_the_same_numbers(dtype, c_in, c_out, kind, tmp_path):
    paths = written(dtype, c_in, c_out, kind, tmp_path)
    standard, portable = map(onnx.load, paths)
    assert raw(standard) == raw(portable)
    assert len(raw(standard)) == (24 if dtype == "nvfp4" else 16)  # of six weights, two of them twice
    x = {"x": tokens(5, c_in).astype(kind)}
    values = [[n.input[1] for n in m.graph.node if n.output[0] in READS] for m in (standard, portable)]
    made = [evaluate(standard, x, *values[0]), evaluate(portable, x, *values[1]), run(portable, x, *values[1])]
    for (name, turned), *weights in zip(READS.values(), *made, strict=True):
        w = floats(standard, name, c_in).astype(kind)
        for other in weights:
            assert other.dtype == kind
            np.testing.assert_array_equal(other, w if turned else w.T)
    results = [evaluate(standard, x), evaluate(portable, x), run(portable, x)]
    for want, *others in zip(*results, strict=True):
        assert all(relative(other, want) < (1e-6 if kind == np.float32 else 3e-3) for other in others)


@pytest.mark.parametrize("dtype", STANDARD)
def test_types_in_the_standard_file(dtype, tmp_path):
    """Types that TensorRT's and other parsers look for, and the opset that first had them."""
    standard = onnx.load(written(dtype, 45, 31, np.float32, tmp_path)[0])
    kinds = {t.name: (t.data_type, tuple(t.dims)) for t in standard.graph.initializer}
    e2m1, e4m3, e8m0 = onnx.TensorProto.FLOAT4E2M1, onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E8M0
    assert kinds["plain_quantized"] == (e4m3 if dtype == "mxfp8" else e2m1, (31, 45))
    if dtype == "nvfp4":
        assert (kinds["plain_scale"], kinds["plain_scale_2"]) == ((e4m3, (31, 3)), (onnx.TensorProto.FLOAT, (1,)))
    else:
        assert kinds["plain_scale"] == (e8m0, (31, 2))
    assert standard.opset_import[0].version == (23 if dtype == "nvfp4" else 24)


def test_zeros_stay_zero(tmp_path):
    """A weight, a block and a column of zeros: scales of 1 (NVFP4), or the least power of two (MX)."""
    proto = every_reader(c_in=96, c_out=8)
    for tensor in proto.graph.initializer:
        w = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in ("plain", "straight"):
            w[:32], w[:, 3] = 0, 0
        if tensor.name in ("shared", "table"):
            w[:] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(w, tensor.name))
    source, x = save(proto, tmp_path), {"x": tokens(5, 96)}
    for dtype, (standard, block) in STANDARD.items():
        for form in (standard, "portable"):
            target = tmp_path / f"{dtype} {form}.onnx"
            quantize(source, target, fmt=make_format(dtype, block), form=form)
            y = (run if form == "portable" else evaluate)(target, x)[0]
            assert np.isfinite(y).all()
            assert (y[:, 3] == 0).all()
            assert (y[:, 24:48] == 0).all()


def test_e4m3_of_ml_dtypes_is_that_of_the_standard():
    """What other tests read scales with: a sign, four bits of exponent with bias 7, three of mantissa, no infinity."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, (codes & 7) / 8
    want = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    want = np.where(codes & 127 == 127, np.nan, np.where(codes > 127, -want, want))
    np.testing.assert_array_equal(codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64), want)
