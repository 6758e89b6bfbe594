"""What no output of a model depends on: the conversion to another opset drops it, and the report says so."""

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir
import onnx_ir.passes.common as passes

from jaxq.graph.constants import is_listed
from jaxq.graph.nodes import subgraphs
from jaxq.graph.skipped import Skipped, skip, skipped_in_functions

_REMOVED = "no output of the model depends on it: removed"


def remove_unused(model: ir.Model) -> list[Skipped]:
    """Removes nodes, initializers and functions that nothing reads, in place.

    Returns:
        The float weights among what is gone.
    """
    held = {value: skip(value, _REMOVED) for value in _floats(model)}
    functions = skipped_in_functions(model)
    _remove_nodes(model.graph)
    for graph in model.graphs():
        for name, value in tuple(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
    passes.RemoveUnusedFunctionsPass()(model)
    left, left_in_functions = set(_floats(model)), {d.name for d in skipped_in_functions(model)}
    gone = [skipped for value, skipped in held.items() if value not in left]
    return gone + [replace(d, reason=_REMOVED) for d in functions if d.name not in left_in_functions]


def _floats(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from filter(is_listed, graph.initializers.values())
        yield from (node.outputs[0] for node in graph if node.op_type == "Constant" and is_listed(node.outputs[0]))


def _remove_nodes(graph: ir.Graph) -> None:
    """Backwards, and into a node's subgraphs on the way: what these read comes before."""
    for node in reversed(graph):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            for inner in subgraphs(node):
                _remove_nodes(inner)
            continue
        for inner in (each for subgraph in subgraphs(node) for each in subgraph.all_nodes()):
            for index in range(len(inner.inputs)):  # or they would read values of this graph for ever
                inner.replace_input_with(index, None)
        graph.remove(node, safe=True)
