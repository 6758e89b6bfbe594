"""Layouts that jaxq does not read, and malformed nodes, are listed with the reason."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from jaxq.errors import JaxqError
from jaxq.files.model_file import load_model
from jaxq.formats.registry import make_format
from jaxq.readback.float_model import float_model
from jaxq.readback.weights import read_back, read_weights
from tests.support import models
from tests.support.foreign import SCALES, Q, S, codes, foreign, tensor
from tests.support.models import node
from tests.support.running import quantize, save

DQ = node("DequantizeLinear", "q s", "w", axis=0, block_size=16)
PACKED = [tensor("b", np.zeros((32, 2, 8), np.uint8)), S, tensor("order", np.zeros(32, np.int32))]
NBITS = {"domain": "com.microsoft", "K": 32, "N": 32, "bits": 4, "block_size": 16}
NO_WEIGHTS = {
    "activation": (
        [node("QuantizeLinear", "x one", "c"), node("DequantizeLinear", "c one", "y")],
        [tensor("one", np.array(1, np.float32))],
        "when the model runs",
        0,
    ),
    "another reader": ([DQ, node("Add", "x w", "y")], [Q, S], "read by Add as input 1", 512),
    "first input": ([DQ, node("MatMul", "w x", "y")], [Q, S], "read by MatMul as input 0", 512),
    "something between": ([DQ, node("Mul", "w s2", "v"), node("MatMul", "x v", "y")], [Q, S], "Mul computes", 512),
    "g_idx": ([node("MatMulNBits", "x b s  order", "y", **NBITS)], PACKED, "g_idx", 512),
    "K": ([node("MatMulNBits", "x b s", "y", **NBITS | {"K": 64})], PACKED[:2], "K=64", 512),
    "another operator": (
        [node("MatMulBnb4", "x b s", "y", K=32, N=32, block_size=32, quant_type=1, domain="com.microsoft")],
        PACKED[:2],
        "UINT8 that is read by MatMulBnb4 as input 1",
        512,
    ),
}


def test_weights_that_are_not_the_same_are_no_copies(tmp_path):
    """Names count for nothing: these two look like copies of one weight."""
    names = ("w_quantized", "w_quantized_0")
    tensors = [tensor(name, codes(32, 32, seed=i), TensorProto.INT4) for i, name in enumerate(names)]
    nodes = []
    for i, name in enumerate(names):
        nodes.append(node("DequantizeLinear", f"{name} s", f"w{i}", axis=0, block_size=16))
        nodes.append(node("MatMul", f"x w{i}", f"y{i}"))
    found = read_weights(load_model(save(foreign(nodes, [*tensors, S], y0=2, y1=2), tmp_path)))
    assert [(w.name, w.copies, len(w.nodes)) for w in found] == [("w", 1, 1), ("w", 1, 1)]


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_what_is_not_understood_is_listed(name, tmp_path):
    nodes, tensors, reason, nbytes = NO_WEIGHTS[name]
    if name == "g_idx":
        nodes[0].input[:] = ["x", "b", "s", "", "order"]
    path = save(foreign(nodes, [*tensors, tensor("s2", np.array([2], np.float32))]), tmp_path)
    found = read_back(load_model(path))
    assert found.weights == ()
    (unread,) = found.unread
    assert reason in unread.reason
    assert unread.nbytes == nbytes
    model = load_model(path)
    float_model(model)
    assert [n.op_type for n in model.graph] == [n.op_type for n in nodes]


def test_other_pairs_of_numbers_are_not_understood(tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.mlp(), tmp_path), target, fmt=make_format("nvfp4", 16), form="portable")
    proto = onnx.load(target)
    (pairs,) = [t for t in proto.graph.initializer if t.name == "jaxq/e2m1_pairs"]
    pairs.CopyFrom(tensor(pairs.name, onnx.numpy_helper.to_array(pairs) * 2))
    found = read_back(load_model(save(proto, tmp_path, "other.onnx")))
    assert found.weights == ()
    assert {u.reason for u in found.unread} == {"bytes that stand for other numbers than two E2M1 codes"}


def broken(inputs: str = "q s", **attributes: int) -> list[onnx.NodeProto]:
    return [node("DequantizeLinear", inputs, "w", **attributes), node("MatMul", "x w", "y")]


BROKEN = {
    "no elements": (broken(), [tensor("q", np.zeros((0, 3), np.int8)), tensor("s", np.ones(3, np.float32))]),
    "block_size": (broken(axis=0, block_size=-1), [Q, S]),
    "axis": (broken(axis=7, block_size=16), [Q, S]),
    "two axes": (broken(), [Q, tensor("s", np.ones((2, 4), np.float32))]),
    "more scales than rows": (broken(), [Q, tensor("s", np.ones((40, 32), np.float32))]),
    "no scales": (broken("q"), [Q]),
    "no blocks": ([node("MatMulNBits", "x b s", "y", **NBITS | {"block_size": 0})], PACKED[:2]),
    "no columns": ([node("MatMulNBits", "x b s", "y", **NBITS | {"N": 0})], PACKED[:2]),
    "bits": ([node("GatherBlockQuantized", "b x s", "y", domain="com.microsoft", bits=0)], PACKED[:2]),
    "no inputs": ([node("GatherBlockQuantized", "", "y", domain="com.microsoft")], [Q]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_nodes_are_listed(name, tmp_path):
    found = read_back(load_model(save(foreign(*BROKEN[name]), tmp_path)))
    assert found.weights == ()
    assert found.unread
    assert all(u.reason for u in found.unread)


def test_scales_that_do_not_fit_are_refused(tmp_path):
    nodes = [DQ, node("MatMul", "x w", "y")]
    (w,) = read_weights(load_model(save(foreign(nodes, [Q, tensor("s", SCALES[:, :5])]), tmp_path)))
    with pytest.raises(JaxqError, match="weight 'q' has codes and scales that do not fit"):
        w.dequantize()
