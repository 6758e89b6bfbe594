"""jaxq.int4.quantize_rtn: scales, types and refusals."""

from typing import Any

import numpy as np
import onnx
import pytest

from jaxq.errors import JaxqError
from jaxq.int4 import quantize, quantize_rtn
from tests.support import models
from tests.support.int4_quantize import DATA, dtypes, operators
from tests.support.models import HIDDEN, build, node, value, weight
from tests.support.running import initializers, relative, run


@pytest.mark.parametrize("dq_only", [False, True])
@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16])
def test_quantize_rtn(kind, dq_only):
    dtype = np.float32 if kind == onnx.TensorProto.FLOAT else np.float16
    source = models.typed(dtype, kind)
    got = quantize_rtn(source, kind, 32, dq_only)
    s = initializers(got)["w_scale"]
    assert s.dtype == dtype
    w = initializers(source)["w"].astype(np.float32)
    np.testing.assert_allclose(s, abs(w).reshape(2, 32, -1).max(axis=1) / 7, rtol=1e-3)
    assert ("QuantizeLinear" in operators(got)) != dq_only
    x = {"x": DATA[0]["x"].astype(dtype)}
    assert relative(run(got, x)[0], run(source, x)[0]) < 0.2


def test_quantize_rtn_looks_at_weights_alone():
    """A float32 constant of two dimensions beside float16 weights."""
    source = models.typed(np.float16, onnx.TensorProto.FLOAT16)
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), "constant"))
    source.graph.node.append(node("Abs", "constant", "unused"))
    got = quantize_rtn(source, onnx.TensorProto.FLOAT16, 32, dq_only=True)
    assert initializers(got)["w_scale"].dtype == np.float16


def test_quantize_rtn_refuses_what_is_no_model_or_type():
    wrong: Any = "model.onnx"
    with pytest.raises(JaxqError, match=r"onnx_model is of type str: give an onnx.ModelProto"):
        quantize_rtn(wrong, onnx.TensorProto.FLOAT, 32)
    for kind in ("FLOAT", [1], onnx.TensorProto.INT4):
        wrong = kind
        with pytest.raises(JaxqError, match=r"gemm_io_type is .*: give onnx.TensorProto.FLOAT or"):
            quantize_rtn(models.mlp(), wrong, 32)


def test_quantize_rtn_refuses_another_type():
    with pytest.raises(JaxqError, match="gemm_io_type is FLOAT16, and the model's weights have type FLOAT"):
        quantize_rtn(models.mlp(), onnx.TensorProto.FLOAT16, 32)


def test_quantize_rtn_skips_kernels_whatever_their_type():
    """A kernel in float16 says nothing of ``gemm_io_type``."""
    half = onnx.TensorProto.FLOAT16
    nodes = [node("Conv", "a kernel", "b"), node("Cast", "b", "c", to=1), node("MatMul", "c w", "y")]
    weights = {"kernel": weight(24, HIDDEN, 1, dtype=np.float16), "w": weight(16, 32)}
    source = build(nodes, weights, {"y": (2, 24, 32)}, [value("a", (2, HIDDEN, 16), half)])
    got = quantize_rtn(source, onnx.TensorProto.FLOAT, 16, dq_only=True)
    assert set(dtypes(got)) == {"w"}
    np.testing.assert_array_equal(initializers(got)["kernel"], weights["kernel"])


def test_calls_of_modelopt_047():
    """The second argument is the block size, and the type is that of the weights."""
    page = quantize_rtn(models.mlp(), onnx.TensorProto.FLOAT, 32)
    assert quantize_rtn(models.mlp(), 32) == quantize_rtn(models.mlp(), block_size=32) == page
    page = quantize_rtn(models.mlp(), onnx.TensorProto.FLOAT, 32, dq_only=True)
    assert quantize_rtn(models.mlp(), 32, True) == quantize_rtn(models.mlp(), 32, dq_only=True) == page
    with pytest.raises(JaxqError, match="block_size is missing"):
        quantize_rtn(models.mlp())


@pytest.mark.parametrize(
    ("name", "default", "other"),
    [("log_level", "INFO", "DEBUG"), ("input_shapes_profile", None, [{}]), ("enable_mixed_quant", False, True)],
)
def test_parameters_of_modelopt_047_without_meaning(name, default, other):
    plain = quantize(models.mlp(), "rtn_dq", block_size=32)
    assert quantize(models.mlp(), "rtn_dq", block_size=32, **{name: default}) == plain
    with pytest.raises(JaxqError, match=f"{name} is .*, which has no effect here"):
        quantize(models.mlp(), "rtn_dq", block_size=32, **{name: other})
