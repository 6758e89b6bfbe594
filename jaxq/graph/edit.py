"""Edits of an ONNX graph: new initializers under names that are free, and removal of what nothing reads any more."""

from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir


def free_name(name: str, taken: Collection[str], start: int = 0) -> str:
    """``name``, or ``name`` with the first number from ``start`` on that makes it a name that is not taken.

    Example:
        >>> free_name("w", {"w", "w_0"})
        'w_1'
    """
    candidate, number = name, start
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def new_initializer(graph: ir.Graph, name: str, tensor: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """A new initializer of a graph, under a name that no other initializer of this graph has."""
    return _register(graph, free_name(name, graph.initializers), tensor)


def _register(graph: ir.Graph, name: str, tensor: np.ndarray | ir.TensorProtocol) -> ir.Value:
    if isinstance(tensor, np.ndarray):
        tensor = ir.Tensor(np.asarray(tensor, order="C"))
    tensor.name = name
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


class Names:
    """The names of all values of a model, its subgraphs included; those inside functions are a scope of their own."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = {str(v.name) for graph in model.graphs() for v in (*graph.inputs, *graph.initializers.values())}
        self._taken |= {str(v.name) for node in model.graph.all_nodes() for v in node.outputs}

    def unique(self, name: str) -> str:
        """``name``, or ``name`` with a number behind it where a value has that name; from now on it is taken."""
        name = free_name(name, self._taken)
        self._taken.add(name)
        return name

    def initializer(self, graph: ir.Graph, name: str, tensor: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """A new initializer of a graph, under a name that no value of the model has."""
        return _register(graph, self.unique(name), tensor)


def rename_doubles(model: ir.Model) -> None:
    """Gives initializers of different graphs different names, in place: two branches may use the same ones."""
    taken: set[str] = set()
    for graph in model.graphs():
        for value in tuple(graph.initializers.values()):
            if value.name in taken:
                value.name = free_name(str(value.name), taken, start=1)
            taken.add(str(value.name))


def drop_unused(values: Iterable[ir.Value | None], detach: bool = True) -> None:
    """Removes those of some constants that nothing reads any more, and the nodes that computed them.

    A node goes once none of its outputs is read; its inputs are then looked at in the same way.

    Args:
        values: Initializers, or outputs of nodes that compute constants; graph inputs and outputs stay.
        detach: Removed nodes let go of their inputs. Without it they keep them, so that their outputs can still be
            computed from these later.
    """
    pending = list(values)
    while pending:
        value = pending.pop()
        if value is None or value.graph is None or _is_read(value):
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and not value.is_graph_input():
                del value.graph.initializers[str(value.name)]
        elif node.graph is not None and not any(map(_is_read, node.outputs)):
            pending += node.inputs
            node.graph.remove(node, safe=detach)


def _is_read(value: ir.Value) -> bool:
    """True if a graph outputs a value, or a node reads it; nodes that were removed do not count."""
    return value.is_graph_output() or any(node.graph is not None for node, _ in value.uses())


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph or subgraph that a node is in."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph
