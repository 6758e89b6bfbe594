"""Stacks that cannot be quantized are skipped, with the reason."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites
from tests.support import models
from tests.support.models import HIDDEN, build, node, value, weight
from tests.support.running import quantize, save
from tests.support.stacks import product, stack


def picked(index: str) -> onnx.ModelProto:
    """One expert's matrix, taken out of a stack by a number that the model computes or gets."""
    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Cast", "total", "number", to=TensorProto.INT64),
        node("Clip", "number zero one", "expert"),
        node("Gather", f"experts {index}", "w"),
        node("MatMul", "x w", "h"),
        node("MatMul", "h last", "y"),
    ]
    weights = {"zero": np.array(0), "one": np.array(1), "experts": stack(2, HIDDEN, HIDDEN)}
    return build(nodes, weights | {"last": weight(HIDDEN, HIDDEN)}, {"y": models.ACTIVATION})


def microsoft(op: str, integers: bool) -> onnx.ModelProto:
    """An operator of onnxruntime that holds all experts, and a product."""
    proto = models.linear_pair()
    held = {"fc1": stack(2, HIDDEN, 64), "fc2": stack(2, 64, HIDDEN)}
    if integers:
        held = {name: np.abs(w * 100).astype(np.uint8) for name, w in held.items()}
        held |= {f"{name}_scale": stack(2, 64, 1)[..., 0] for name in held}
    for name, array in {**held, "routing": weight(4, 2)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    names = ["fc1", "fc1_scale", "", "fc2", "fc2_scale"] if integers else ["fc1", "", "fc2"]
    proto.graph.node[1].input[0] = "moe"
    moe = onnx.helper.make_node(op, ["h", "routing", *names], ["moe"], f"/moe/{op}", "", "com.microsoft", k=1)
    proto.graph.node.insert(1, moe)
    proto.opset_import.add(domain="com.microsoft", version=1)
    return proto


READ_WHOLE = "one that MatMul reads as a whole can be quantized"
LEFT = {
    "computed index": (
        lambda: picked("expert"),
        {"experts": f"a stack of shape [2, 64, 64] that Gather picks from by a computed index: {READ_WHOLE}"},
    ),
    "MoE": (
        lambda: microsoft("MoE", False),
        {
            "fc1": "read by MoE as input 2: jaxq does not quantize that operator's experts",
            "fc2": "read by MoE as input 4: jaxq does not quantize that operator's experts",
        },
    ),
    "QMoE": (
        lambda: microsoft("QMoE", True),
        {"fc1_scale": "part of a weight that is quantized already"},
    ),
    "stacks of stacks": (
        lambda: product([2, 3, 5, 72], stack(6).reshape(2, 3, 72, 20), [2, 3, 5, 20]),
        {"w": "a stack of shape [2, 3, 72, 20]: stacks [matrices, c_in, c_out] can be quantized"},
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone_says_why(name):
    make, reasons = LEFT[name]
    model = ir.from_proto(make())
    prepare(model)
    sites, skipped = find_sites(model.graph)
    found = {d.name: d.reason for d in skipped}
    assert {key: found[key] for key in reasons} == reasons
    assert not {site.name for site in sites} & set(reasons)


FORMS_WITHOUT = [
    ("matmulnbits", IntegerFormat(32), "form 'matmulnbits' supports matrices only; dq, qdq, column_major support it"),
    ("trt", IntegerFormat(32), "form 'trt' supports matrices only; dq, qdq, column_major support it"),
    ("trt_qdq", IntegerFormat(-1), "form 'trt_qdq' supports matrices only; dq, qdq, column_major support it"),
    ("portable", make_format("nvfp4"), "3 in one: nvfp4 has one scale for the whole weight"),
    ("nvfp4_standard", make_format("nvfp4"), "3 in one: nvfp4 has one scale for the whole weight"),
]


@pytest.mark.parametrize(("form", "fmt", "reason"), FORMS_WITHOUT, ids=str)
def test_forms_that_hold_no_stacks_leave_them_alone(form, fmt, reason, tmp_path):
    proto = build(
        [node("MatMul", "x w", "h"), node("MatMul", "h stack", "y")],
        {"w": weight(HIDDEN, 72), "stack": stack(3)},
        {"y": (3, "b", 20)},
        [value("x", (3, "b", HIDDEN))],
    )
    outcome = quantize(save(proto, tmp_path), tmp_path / "out.onnx", fmt=fmt, form=form)
    assert [layer.name for layer in outcome.layers] == ["w"]
    assert [d.name for d in outcome.skipped] == ["stack"]
    assert outcome.skipped[0].reason.startswith("a stack of matrices") and reason in outcome.skipped[0].reason
