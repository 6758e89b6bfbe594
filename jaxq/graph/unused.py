"""Remove the nodes and weights that no output of a model depends on, as the conversion to another opset does."""

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
        The float weights that were removed.
    """
    before = {value: skip(value, _REMOVED) for value in _floats(model)}
    functions = skipped_in_functions(model)
    _remove_nodes(model.graph)
    for graph in model.graphs():
        for name, value in tuple(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
    passes.RemoveUnusedFunctionsPass()(model)
    after, after_in_functions = set(_floats(model)), {d.name for d in skipped_in_functions(model)}
    removed = [skipped for value, skipped in before.items() if value not in after]
    return removed + [replace(d, reason=_REMOVED) for d in functions if d.name not in after_in_functions]


def _floats(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from filter(is_listed, graph.initializers.values())
        yield from (node.outputs[0] for node in graph if node.op_type == "Constant" and is_listed(node.outputs[0]))


def _remove_nodes(graph: ir.Graph) -> None:
    """From the last node to the first, and into subgraphs on the way: the values that they read come earlier."""
    for node in reversed(graph):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            for inner in subgraphs(node):
                _remove_nodes(inner)
            continue
        for inner in (inner for subgraph in subgraphs(node) for inner in subgraph.all_nodes()):
            for index in range(len(inner.inputs)):  # else they would count as readers of this graph's values
                inner.replace_input_with(index, None)
        graph.remove(node, safe=True)
