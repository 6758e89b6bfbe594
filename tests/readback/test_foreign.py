"""Files that other tools wrote are read back: what they say, and the weights that their bytes stand for."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from jaxq.files.model_file import load_model
from jaxq.readback.weights import read_back, read_weights
from tests.support.foreign import SCALES, Q, codes, expanded, foreign, tensor
from tests.support.models import node
from tests.support.running import relative, run, save


def test_a_weight_that_is_read_as_a_table_and_transposed(tmp_path):
    """Tied embeddings: the codes are counted once."""
    tensors = [tensor("q", codes(32, 32), TensorProto.INT8), tensor("s", SCALES[0])]
    nodes = [
        node("DequantizeLinear", "q s", "w", axis=0),
        node("Transpose", "w", "head", perm=[1, 0]),
        node("Cast", "x", "ids", to=TensorProto.INT64),
        node("Gather", "w ids", "e"),
        node("MatMul", "x head", "y"),
    ]
    path = save(foreign(nodes, tensors, e=3, y=2), tmp_path)
    head, table = sorted(read_weights(load_model(path)), key=lambda w: w.ops, reverse=True)
    assert ((head.ops, head.transposed), (table.ops, table.transposed)) == ((("MatMul",), True), (("Gather",), False))
    w = codes(32, 32) * SCALES[0][:, None]
    np.testing.assert_array_equal(table.dequantize(), w)
    np.testing.assert_array_equal(head.dequantize(), w.T)
    assert head.tensors == table.tensors
    feeds = {"x": (np.arange(64).reshape(2, 32) % 32).astype(np.float32)}
    for a, b in zip(run(path, feeds), run(expanded(path), feeds), strict=True):
        assert relative(a, b) < 1e-6


@pytest.mark.parametrize("scales", [SCALES, SCALES.ravel()], ids=["in rows", "flat"])
@pytest.mark.parametrize("zero_points", [None, np.uint8, np.float32], ids=str)
def test_mat_mul_n_bits_of_others(scales, zero_points, tmp_path):
    """K = 32 in two blocks of 16, N = 32; zero points in bytes or as floats."""
    q, zp = codes(32, 32, low=0, high=16), codes(32, 2, low=0, high=16)
    packed = (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8).reshape(32, 2, 8)
    tensors = [tensor("q", packed), tensor("s", scales.reshape((32, 2) if scales.ndim > 1 else -1))]
    if zero_points is not None:
        held = zp if zero_points == np.float32 else zp[:, :1] | zp[:, 1:] << 4
        tensors.append(tensor("z", held.astype(zero_points)))
    names = " ".join(["x", *(t.name for t in tensors)])
    each = node("MatMulNBits", names, "y", domain="com.microsoft", K=32, N=32, bits=4, block_size=16)
    (w,) = read_weights(load_model(save(foreign([each], tensors), tmp_path)))
    assert (w.dtype, w.block_size) == ("int4" if zero_points is None else "uint4", 16)
    middle = np.repeat(zp, 16, axis=1) if zero_points is not None else 8
    expected = (q - middle) * np.repeat(scales.reshape(32, 2), 16, axis=1)
    np.testing.assert_array_equal(w.dequantize(), expected.astype(np.float32).T)


def test_a_table_in_bytes(tmp_path):
    """GatherBlockQuantized with two codes a byte: its middle is 8 where no zero points are."""
    q = codes(5, 32, low=0, high=16)
    tensors = [
        tensor("q", (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8)),
        tensor("s", SCALES.ravel()[:10].reshape(5, 2)),
    ]
    how = {"gather_axis": 0, "quantize_axis": 1, "block_size": 16, "bits": 4}
    nodes = [node("Cast", "x", "ids", to=TensorProto.INT64)]
    nodes.append(node("GatherBlockQuantized", "q ids s", "y", domain="com.microsoft", **how))
    path = save(foreign(nodes, tensors, y=3), tmp_path)
    (w,) = read_weights(load_model(path))
    assert (w.dtype, w.shape) == ("int4", (5, 32))
    expected = (q - 8) * np.repeat(SCALES.ravel()[:10].reshape(5, 2), 16, axis=1)
    np.testing.assert_array_equal(w.dequantize(), expected)
    feeds = {"x": (np.arange(32).reshape(1, 32) % 5).astype(np.float32)}
    assert relative(*run(path, feeds), *run(expanded(path), feeds)) < 1e-6


FOREIGN = Path(__file__).parent / "foreign"
"""A model and what other tools made of it: experiments/parity/make_foreign.py."""

W, TABLE = ("w", (64, 12)), ("table", (6, 48))
WRITTEN = {
    "rtn": [("qdq", "int4", 32, *W)],
    "rtn_dq": [("dq", "int4", 32, *W)],
    "rtn_trt": [("trt_qdq", "int4", 32, *W)],
    "rtn_trt_dq": [("trt", "int4", 32, *W)],
    "awq_lite": [("dq", "int4", 32, *W)],
    "awq_clip": [("dq", "int4", 32, *W)],
    "columns": [("column_major", "int4", 32, *W)],
    "gather": [("dq", "int4", 32, *W), ("dq", "int4", 32, *TABLE)],
    "gather_trt": [("trt", "int4", 32, *W), ("trt", "int4", 32, *TABLE)],
    "layers_8bit": [("dq", "int8", -1, *W)],
    "layers_8bit_trt": [("trt", "int8", -1, *W)],
    "onnxruntime": [("matmulnbits", "int4", 32, *W), ("matmulnbits", "int4", 32, *TABLE)],
}


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_other_tools(name):
    path, floats = FOREIGN / f"{name}.onnx", initializers(FOREIGN / "float.onnx")
    found = read_back(load_model(path))
    assert not found.unread
    ordered = sorted(found.weights, key=lambda w: w.shape, reverse=True)
    said = [(w.form, w.dtype, w.block_size, w.shape) for w in ordered]
    assert said == [(form, dtype, block, shape) for form, dtype, block, _, shape in WRITTEN[name]]
    for w, (_, dtype, block, source, _) in zip(ordered, WRITTEN[name], strict=True):
        got, expected = w.dequantize(), floats[source]
        if (scale := initializers(path).get("w_awq_scale")) is not None:
            got = got * scale.T
        assert w.nbytes * 8 >= w.size * (8 if dtype == "int8" else 4)
        assert relative(got, expected) < (0.01 if dtype == "int8" else 0.15), block


BLOCKS_OF_SCALES = {
    (2, 32): (16, 0),
    (32, 2): (16, 1),
    (1, 32): (-1, 1),
    (32, 1): (-1, 0),
    (3, 32): (11, 0),
    (32, 32): (1, 1),
}


@pytest.mark.parametrize("shape", BLOCKS_OF_SCALES, ids=str)
@pytest.mark.parametrize("op", ["DequantizeLinear", "TRT_INT4DequantizeLinear"])
def test_blocks_that_only_the_scales_show(op, shape, tmp_path):
    """ModelOpt writes neither axis nor block size where it leaves the weight in float."""
    scales = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape) / 64
    nodes = [node(op, "q s", "w"), node("MatMul", "x w", "y")]
    (w,) = read_weights(load_model(save(foreign(nodes, [Q, tensor("s", scales)]), tmp_path)))
    assert (w.block_size, w.axis) == BLOCKS_OF_SCALES[shape]
    rows, columns = (np.arange(32) // -(-32 // n) for n in shape)
    np.testing.assert_array_equal(w.dequantize(), codes(32, 32) * scales[np.ix_(rows, columns)])
