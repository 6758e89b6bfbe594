"""Divide an activation by AWQ's scale: in the constants that produce it if possible, else by a new Mul node.

The weights that multiply the activation were multiplied by the scale, so that the model computes the same function.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from jaxq.graph.edit import drop_unused, free_name, new_initializer
from jaxq.graph.nodes import STANDARD
from jaxq.graph.sites import Group, Site

# Norms: which inputs are multiplied into (or added to) each channel of the first output.
_NORM_INPUTS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}

# Nodes that read an activation's shape but not its values.
_SHAPE_READERS = ("Shape", "Size")


@dataclass(frozen=True, eq=False)
class Fold:
    """The constants that a division of an activation by ``s`` is folded into.

    Attributes:
        vectors: Uses ``(node, input index)`` of constants with one value a channel: each is divided by ``s``.
        weights: Quantized weights whose columns are divided by ``s``, through their scales.
    """

    vectors: tuple[tuple[ir.Node, int], ...] = ()
    weights: tuple[ir.Value, ...] = ()

    def __add__(self, other: "Fold") -> "Fold":
        return Fold(self.vectors + other.vectors, self.weights + other.weights)

    def __str__(self) -> str:
        return " and ".join(n for n, there in (("vector", self.vectors), ("weight", self.weights)) if there)


def find_fold(group: Group, quantized: Iterable[Site]) -> Fold | None:
    """The constants before a group's activation into which a division of every channel can be folded, or None.

    Args:
        group: Siblings with one activation. Stacks fold into stacks of as many matrices only.
        quantized: Sites whose scales can be changed.
    """
    if len(group.activation_values) != 1:
        return None
    readers = {node for site in group.sites for node in site.nodes}
    single: dict[ir.Value | None, Site] = {
        site.weight: site for site in quantized if len(site.nodes) == 1 and site.count == group.count
    }
    fold = _fold_value(group.activation_values[0], readers, single, group.sites[0].c_in)
    if fold is not None and fold.vectors and group.count > 1:
        return None  # a vector has one value for all matrices, and each has scales of its own
    return fold


def divide_vectors(graph: ir.Graph, fold: Fold, s: np.ndarray) -> None:
    """Divides the fold's vectors by ``s`` [channels], each as a new initializer: others may read the old one."""
    for (node, index), vector in zip(fold.vectors, divided_vectors(fold, s), strict=True):
        old = node.inputs[index]
        assert old is not None
        node.replace_input_with(index, new_initializer(graph, f"{old.name}_awq", vector))
        drop_unused([old])


def divided_vectors(fold: Fold, s: np.ndarray) -> list[np.ndarray]:
    """The fold's vectors divided by ``s``, in their own type: infinite where that overflows."""
    values = [node.inputs[index] for node, index in fold.vectors]
    vectors = [v.const_value.numpy() for v in values if v is not None and v.const_value is not None]
    with np.errstate(over="ignore"):
        return [(v.astype(np.float32) / s).astype(v.dtype) for v in vectors]


def insert_division(graph: ir.Graph, group: Group, s: np.ndarray) -> None:
    """Puts ``Mul(x, 1 / s)`` between the group's activation and its readers; ``s`` of a stack has a row a matrix."""
    nodes = [node for site in group.sites for node in site.nodes]
    x = nodes[0].inputs[0]  # the group's activation, or the value by which an edit replaced it
    assert x is not None
    inverse = (1 / s.astype(np.float32)).astype(_numpy_type(group))
    stack = s.ndim == 2  # then the product has the axis of matrices, even if the activation has not
    factor = new_initializer(graph, f"{x.name}_awq_factor", inverse[:, None, :] if stack else inverse)
    out = ir.Value(name=free_name(f"{x.name}_awq", graph.initializers), type=x.type, shape=None if stack else x.shape)
    mul = ir.Node("", "Mul", [x, factor], outputs=[out], name=free_name(f"{x.name}_awq_Mul", graph.initializers))
    producer = x.producer()
    graph.insert_after(producer, mul) if producer else graph.insert_before(graph[0], mul)
    for node in nodes:
        node.replace_input_with(0, out)


def _numpy_type(group: Group) -> np.dtype:
    dtype = group.sites[0].weight.dtype
    assert dtype is not None
    return np.dtype(dtype.numpy())


def _fold_value(
    value: ir.Value, readers: Collection[ir.Node], sites: dict[ir.Value | None, Site], channels: int
) -> Fold | None:
    node = value.producer()
    if node is None or value.is_graph_output():
        return None
    if {use.node for use in value.uses() if use.node.op_type not in _SHAPE_READERS} != set(readers):
        return None
    if node.op_type in _NORM_INPUTS and value is node.outputs[0]:
        return _fold_vectors(node, _NORM_INPUTS[node.op_type], channels)
    if node.domain not in STANDARD:
        return None
    if node.op_type == "Mul" and node.inputs[0] is not node.inputs[1]:
        return _first(_fold_operand(node, i, sites, channels) for i in (0, 1))
    if node.op_type == "Add":
        first, second = (_fold_operand(node, i, sites, channels) for i in (0, 1))
        return first + second if first and second else None
    if node.op_type == "MatMul" and (site := sites.get(node.inputs[1])) and site.c_out == channels:
        return Fold(weights=(site.weight,))
    return None


def _fold_operand(node: ir.Node, index: int, sites: dict[ir.Value | None, Site], channels: int) -> Fold | None:
    operand = node.inputs[index]
    if operand is None:
        return None
    if operand.const_value is not None:
        return _fold_vectors(node, (index,), channels)
    return _fold_value(operand, [node], sites, channels)


def _fold_vectors(node: ir.Node, indices: Iterable[int], channels: int) -> Fold | None:
    uses = [(node, i) for i in indices if i < len(node.inputs) and node.inputs[i] is not None]
    for _, i in uses:
        value = node.inputs[i]
        tensor = value.const_value if value is not None else None
        if tensor is None or tensor.size != channels or tensor.shape.numpy()[-1] != channels:
            return None
    return Fold(vectors=tuple(uses)) if uses else None


def _first(folds: Iterable[Fold | None]) -> Fold | None:
    return next((fold for fold in folds if fold is not None), None)
