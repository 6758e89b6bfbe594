"""Replace a Gemm that has transA, alpha, beta or an unusual bias by ``x W + b`` and separate nodes for the rest.

The attribute transB stays: `jaxq.forms.nodes.place` puts the quantized weight in whichever order the Gemm reads it.
"""

import numpy as np
import onnx_ir as ir

from jaxq.graph.constants import FLOATS
from jaxq.graph.edit import Names, graph_of
from jaxq.graph.nodes import attribute, is_standard

_BIAS = "jaxq.bias"


def is_bias(node: ir.Node, index: int) -> bool:
    """True if an input of a node is the bias of a Gemm or Conv, or of a Gemm that was simplified."""
    return (is_standard(node, "Gemm", "Conv") and index == 2) or node.meta.get(_BIAS) == index


def simplify_gemms(model: ir.Model, names: Names) -> None:
    """Rewrites each Gemm that multiplies by a constant matrix: it becomes ``x W``, plus a bias [N].

    transA becomes a Transpose, alpha a Mul behind, beta part of the bias, and a bias of another shape an Add; numbers
    are in the model's float type. A Gemm with alpha=0 does not depend on its weight and stays.

    Args:
        model: With constants as initializers; changed in place.
        names: Those of the model.
    """
    for node in list(model.graph.all_nodes()):
        if is_standard(node, "Gemm") and _has_weight(node):
            alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
            if alpha and not any(attr.is_ref() for attr in node.attributes.values()):
                _extract_transpose(node, names)
                _extract_factors(node, alpha, beta, names)


def _has_weight(node: ir.Node) -> bool:
    x, w = node.inputs[:2]
    return (
        x is not None
        and x.const_value is None
        and w is not None
        and w.is_initializer()
        and w.const_value is not None
        and w.const_value.dtype in FLOATS
        and len(w.const_value.shape) == 2
    )


def _extract_transpose(node: ir.Node, names: Names) -> None:
    attr = node.attributes.pop("transA", None)
    x = node.inputs[0]
    if attr is None or not attr.as_int() or x is None or node.graph is None:
        return
    shape = None if x.shape is None else ir.Shape([x.shape[1], x.shape[0]])
    out = ir.Value(name=names.unique(f"{x.name}_transposed"), type=x.type, shape=shape)
    perm = ir.AttrInt64s("perm", [1, 0])
    node.graph.insert_before(node, ir.Node("", "Transpose", [x], [perm], outputs=[out], name=f"{node.name}_Transpose"))
    node.replace_input_with(0, out)


def _extract_factors(node: ir.Node, alpha: float, beta: float, names: Names) -> None:
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and beta != 1:
        node.resize_inputs(2)
        # With beta=0 nothing reads the bias any more: it is removed later, and the report lists it.
        bias = _scaled(node, bias, beta, names) if beta else None
    if bias is not None and alpha == 1 and _is_vector(node, bias):
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
        return
    node.resize_inputs(2)
    last = node
    if alpha != 1:
        factor = _constant(node, f"{node.name}_alpha", np.asarray(alpha), names)
        last = _append(last, "Mul", factor, str(node.name), names)
    if bias is not None:
        _append(last, "Add", bias, str(node.name), names).meta[_BIAS] = 1


def _is_vector(node: ir.Node, bias: ir.Value) -> bool:
    """True if a bias is known to have one number for each column, as all kernels of products require."""
    w = node.inputs[1]
    if w is None or w.const_value is None or bias.shape is None:
        return False
    columns = w.const_value.shape.numpy()[0 if attribute(node, "transB", 0) else 1]
    return len(bias.shape) == 1 and bias.shape[0] == columns


def _scaled(node: ir.Node, bias: ir.Value, beta: float, names: Names) -> ir.Value:
    """``beta`` times the bias: a constant that nothing else reads gets other numbers, and keeps its name."""
    assert node.graph is not None
    if bias.is_initializer() and bias.const_value is not None and not bias.uses() and not bias.is_graph_output():
        array = bias.const_value.numpy()
        bias.const_value = ir.Tensor((array.astype(np.float64) * beta).astype(array.dtype), name=bias.name)
        return bias
    factor = _constant(node, f"{node.name}_beta", np.asarray(beta), names)
    out = ir.Value(name=names.unique(f"{bias.name}_scaled"), type=bias.type, shape=bias.shape)
    mul = ir.Node("", "Mul", [bias, factor], outputs=[out], name=f"{node.name}_bias_Mul")
    mul.meta[_BIAS] = 0
    node.graph.insert_before(node, mul)
    return out


def _constant(node: ir.Node, name: str, array: np.ndarray, names: Names) -> ir.Value:
    """An initializer of the type of the node's weight."""
    w = node.inputs[1]
    assert w is not None and w.dtype is not None
    return names.initializer(graph_of(node), name, np.asarray(array, w.dtype.numpy()))


def _append(last: ir.Node, op: str, other: ir.Value, name: str, names: Names) -> ir.Node:
    """Puts ``op(result, other)`` behind a node; the new result takes the old result's name."""
    assert last.graph is not None
    old = last.outputs[0]
    new = ir.Value(name=old.name, type=old.type, shape=old.shape)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = names.unique(f"{old.name}_{last.op_type}")
    node = ir.Node("", op, [old, other], outputs=[new], name=f"{name}_{op}")
    last.graph.insert_after(last, node)
    return node
