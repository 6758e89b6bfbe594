"""Small edits of an ONNX graph that several modules need."""

import numpy as np
import onnx_ir as ir


def new_initializer(graph: ir.Graph, name: str, tensor: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """A new initializer with a name that nothing in the graph has."""
    name = unique_name(graph, name)
    if isinstance(tensor, np.ndarray):
        tensor = ir.Tensor(np.ascontiguousarray(tensor), name=name)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def unique_name(graph: ir.Graph, name: str) -> str:
    """``name``, or with a number behind it where the graph has an initializer of that name."""
    taken = graph.initializers
    if name not in taken:
        return name
    return next(f"{name}_{i}" for i in range(len(taken) + 1) if f"{name}_{i}" not in taken)


def drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Removes an initializer that no node reads any more, from the graph or the subgraph that holds it."""
    if not value.uses() and not value.is_graph_output():
        del (value.graph or graph).initializers[str(value.name)]


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph, or subgraph, that a node stands in."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def rename_doubles(model: ir.Model) -> None:
    """Gives initializers of subgraphs names that those of no other graph have: two branches may share them."""
    taken: set[str] = set()
    for graph in model.graphs():
        for value in tuple(graph.initializers.values()):
            name = str(value.name)
            if name in taken:
                value.name = next(f"{name}_{i}" for i in range(1, len(taken) + 2) if f"{name}_{i}" not in taken)
            taken.add(str(value.name))


class Names:
    """The names of a model's values; functions have their own."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = {str(v.name) for graph in model.graphs() for v in (*graph.inputs, *graph.initializers.values())}
        self._taken |= {str(v.name) for node in model.graph.all_nodes() for v in node.outputs}

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it where a value has it; it is taken then."""
        found, i = name, 0
        while found in self._taken:
            found, i = f"{name}_{i}", i + 1
        self._taken.add(found)
        return found

    def initializer(self, graph: ir.Graph, name: str, tensor: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """A new initializer."""
        name = self.unique(name)
        if isinstance(tensor, np.ndarray):
            tensor = ir.Tensor(tensor)
        tensor.name = name
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        graph.register_initializer(value)
        return value


def drop_dead(values: list[ir.Value]) -> None:
    """Removes constants that nothing reads any more, and nodes, whose readers are gone, that led to them."""
    while values:
        value = values.pop()
        node, graph = value.producer(), value.graph
        if graph is None or value.uses() or value.is_graph_output():
            continue
        if node is None:
            if value.is_initializer() and not value.is_graph_input():
                del graph.initializers[str(value.name)]
        elif node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            values += [v for v in node.inputs if v is not None]
            node.graph.remove(node, safe=True)
