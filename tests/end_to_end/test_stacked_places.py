"""Stacks and kernels wherever matrices may be: in subgraphs, in bfloat16, behind other nodes, beside another reader."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxq.files.model_file import load_model
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.graph.normalize.views import View
from jaxq.readback.weights import read_weights
from jaxq.runtime.batches import Batch
from tests.end_to_end.test_types import widened
from tests.graph.test_sites import sites_of
from tests.support.models import build, node, tokens, value, weight
from tests.support.running import quantize, relative, run, save, with_weights

BF16 = ml_dtypes.bfloat16
E, K, N = 3, 64, 32
FORMS = [("dq", IntegerFormat(32)), ("dq", IntegerFormat(-1)), ("qdq", IntegerFormat(32)),
         ("column_major", IntegerFormat(32)), ("portable", make_format("mxfp4"))]  # fmt: skip
forms = pytest.mark.parametrize(("form", "fmt"), FORMS, ids=lambda v: v if isinstance(v, str) else v.block_size)


def stack(columns: int = N, rows: int = K) -> np.ndarray:
    return np.stack([weight(rows, columns, seed=i) for i in range(E)])


def nested(op: str) -> onnx.ModelProto:
    """An If: one branch reads a weight of its own, the other one of the main graph, which reads it too."""
    own, outer = (stack(K), stack(K) + 1) if op == "MatMul" else (weight(8, 4, 3, 3), weight(8, 4, 3, 3, seed=1))
    how = {} if op == "MatMul" else {"pads": [1, 1, 1, 1], "group": 2}
    shape = ("b", E, "n", K) if op == "MatMul" else ("b", 8, "h", "w")

    def part(out: str, name: str, *held: onnx.TensorProto) -> onnx.GraphProto:
        return helper.make_graph([node(op, f"h {name}", out, **how)], out, [], [value(out, shape)], held)

    nodes = [
        node(op, "x outer", "h", **how),
        node("If", "c", "y", then_branch=part("t", "own", numpy_helper.from_array(own, "own")),
             else_branch=part("e", "outer")),
    ]  # fmt: skip
    return build(nodes, {"outer": outer}, {"y": shape}, [value("x", shape), value("c", (), TensorProto.BOOL)])


def feeds_of(op: str) -> np.ndarray:
    return tokens(2, E, 40, K) if op == "MatMul" else tokens(2, 8, 12, 12)


@forms
@pytest.mark.parametrize("op", ["MatMul", "Conv"])
@pytest.mark.parametrize("method", ["rtn_dq", "awq_lite"])
def test_in_subgraphs(form, fmt, op, method, tmp_path):
    if method == "awq_lite" and form == "qdq":
        pytest.skip("this form holds the float weight")
    proto, x, target = nested(op), feeds_of(op), tmp_path / "out.onnx"
    batches = [Batch({"x": x, "c": np.array(c)}) for c in (True, False)] if method == "awq_lite" else []
    outcome = quantize(save(proto, tmp_path), target, method, batches, fmt, form)
    notes = ("in a subgraph too: not scaled", "in a subgraph: rounded to nearest") if batches else ("", "")
    count = E if op == "MatMul" else 2
    assert {layer.name: (layer.note, layer.matrices) for layer in outcome.layers} == {
        "outer": (notes[0], count),
        "own": (notes[1], count),
    }
    assert {layer.name for layer in outcome.layers if layer.loss is not None} == ({"outer"} if batches else set())
    onnx.checker.check_model(str(target), full_check=True)
    weights = {w.name: w.dequantize() for w in read_weights(load_model(target))}
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        assert relative(run(target, feeds)[0], run(with_weights(proto, weights), feeds)[0]) < 2e-6


def narrow(op: str) -> onnx.ModelProto:
    """In bfloat16, between inputs and outputs in float32."""
    shape = ("b", E, "n", K) if op == "MatMul" else ("b", 8, "h", "w")
    w = stack(K) if op == "MatMul" else weight(8, 8, 3, 3)
    how = {} if op == "MatMul" else {"pads": [1, 1, 1, 1]}
    nodes = [node("Cast", "x", "b", to=TensorProto.BFLOAT16), node(op, "b w", "d", **how)]
    nodes.append(node("Cast", "d", "y", to=TensorProto.FLOAT))
    return build(nodes, {"w": w.astype(BF16)}, {"y": shape}, [value("x", shape)], opset=22)


@forms
@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_in_bfloat16(form, fmt, op, tmp_path):
    proto, x, target = narrow(op), {"x": feeds_of(op)}, tmp_path / "out.onnx"
    source = save(proto, tmp_path)
    method = "rtn_dq" if form == "qdq" else "awq_full"
    (layer,) = quantize(source, target, method, [Batch(x)], fmt, form).layers
    assert layer.loss is not None or form == "qdq"
    onnx.checker.check_model(str(target), full_check=True)
    (found,) = read_weights(load_model(target))
    assert found.float_dtype == ir.DataType.BFLOAT16
    if method == "rtn_dq" or op == "Conv":  # else AWQ's division stands in front
        assert (
            relative(run(widened(target), x)[0], run(with_weights(widened(source), {"w": found.dequantize()}), x)[0])
            < 5e-3
        )
    assert relative(run(widened(target), x)[0], run(widened(source), x)[0]) < 0.25


def turned(op: str) -> tuple[onnx.ModelProto, str]:
    """As exporters write them: [experts, c_out, c_in] behind a Transpose; a kernel in float16 behind a Cast."""
    if op == "MatMul":
        nodes = [node("Transpose", "w", "wt", perm=[0, 2, 1]), node("MatMul", "x wt", "y")]
        held = np.ascontiguousarray(np.swapaxes(stack(N), 1, 2))
        return build(nodes, {"w": held}, {"y": ("b", E, "n", N)}, [value("x", ("b", E, "n", K))]), "wt"
    nodes = [node("Cast", "w", "wt", to=TensorProto.FLOAT), node("Conv", "x wt", "y", pads=[1, 1, 1, 1], group=2)]
    shape = ("b", 8, "h", "w")
    return build(nodes, {"w": weight(8, 4, 3, 3, dtype=np.float16)}, {"y": shape}, [value("x", shape)]), "wt"


@forms
@pytest.mark.parametrize("op", ["MatMul", "Conv"])
@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_behind_other_nodes(form, fmt, op, external, tmp_path):
    (proto, name), x, target = turned(op), {"x": feeds_of(op)}, tmp_path / "out.onnx"
    (layer,) = quantize(save(proto, tmp_path, external=external), target, fmt=fmt, form=form).layers
    assert layer.matrices == (E if op == "MatMul" else 2)
    assert "Cast" not in [n.op_type for n in onnx.load(target).graph.node] or form == "portable"
    (found,) = read_weights(load_model(target))
    plain = with_plain(proto, name, found.dequantize())
    assert relative(run(target, x)[0], run(plain, x)[0]) < 2e-6
    assert relative(run(target, x)[0], run(proto, x)[0]) < 0.25


def with_plain(proto: onnx.ModelProto, name: str, w: np.ndarray) -> onnx.ModelProto:
    """The model with a weight in place of the node that gives it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[0]
    copy.graph.initializer.append(numpy_helper.from_array(w.astype(np.float32), name))
    return copy


@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_one_matrix_of_a_view_is_that_of_the_whole(op):
    ((site,), _) = sites_of(turned(op)[0])
    assert isinstance(site.weight.const_value, View)
    whole = site.weight.const_value.numpy().reshape(site.count, -1, site.c_in if site.transposed else site.c_out)
    for i in range(site.count):
        np.testing.assert_array_equal(site.array(i), whole[i].T if site.transposed else whole[i])
