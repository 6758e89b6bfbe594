"""Cut a graph into windows of bounded weight size, which run one after the other, each once over the data."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.graph.nodes import is_standard, subgraphs


@dataclass(frozen=True, eq=False)
class Window:
    """A run of consecutive nodes.

    Attributes:
        nodes: In topological order. Constants come first; each window that reads a constant has a copy.
        inputs: Values that the nodes read from the model's inputs or from earlier windows.
        captures: The requested values among those that the nodes compute.
        live: Values computed here that later windows read.
        weights: Initializers that the nodes read.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    captures: tuple[ir.Value, ...]
    live: tuple[ir.Value, ...]
    weights: tuple[ir.Value, ...]

    @property
    def weight_bytes(self) -> int:
        """Size of the weights."""
        return sum(v.const_value.nbytes for v in self.weights if v.const_value is not None)


def plan_windows(
    graph: ir.Graph, requested: Sequence[ir.Value], max_bytes: int, steps: Collection[ir.Node] = ()
) -> list[Window]:
    """Windows that compute the requested values, and nothing else.

    Each window has at most ``max_bytes`` of weights; more only if a single node has more. It ends in the second half of
    that size, at the cut that the fewest values cross: these have to wait on disk.

    Args:
        graph: A graph in topological order.
        requested: Values to compute; inputs of the graph among them need no window.
        max_bytes: Weight bytes a window.
        steps: Nodes that run in a later window than all nodes that they depend on: a window ends before each of them.
    """
    if max_bytes < 1:
        raise JaxqError(f"the window size is {max_bytes} bytes: give a positive number")
    needed = [node for node in _ancestors(graph, requested) if not _is_constant(node) or node.outputs[0] in requested]
    nodes, levels = _by_level(needed, frozenset(steps))
    last_read = {value: i for i, node in enumerate(nodes) for value in _reads(node)}
    alive = _count_alive(nodes, last_read)
    windows: list[Window] = []
    start = 0
    while start < len(nodes):
        level_end = next((i for i in range(start, len(nodes)) if levels[i] != levels[start]), len(nodes))
        stop = _next_cut(nodes[:level_end], start, max_bytes, alive)
        windows.append(_window(nodes[start:stop], requested, {v for v, last in last_read.items() if last >= stop}))
        start = stop
    return windows


def _by_level(nodes: Sequence[ir.Node], steps: Collection[ir.Node]) -> tuple[list[ir.Node], list[int]]:
    """Sorts the nodes by level: the greatest number of steps on a path to a node, itself included; gives both."""
    level: dict[ir.Node, int] = {}
    for node in nodes:
        before = (level[p] for v in _reads(node) if (p := v.producer()) in level)
        level[node] = max(before, default=0) + (node in steps)
    ordered = sorted(nodes, key=level.__getitem__)
    return ordered, [level[node] for node in ordered]


def window_model(
    window: Window, ir_version: int, opsets: Mapping[str, int], functions: Sequence[ir.Function]
) -> ir.Model:
    """The window as a model of its own. It shares the memory of the weights with the whole model."""
    outputs = [*window.captures, *(v for v in window.live if v not in window.captures)]
    view = ir.GraphView(
        window.inputs,
        outputs,
        nodes=window.nodes,
        initializers=window.weights,
        opset_imports=dict(opsets),
        name="window",
    )
    return ir.Model(view.clone(), ir_version=ir_version, functions=functions)


def _ancestors(graph: ir.Graph, requested: Sequence[ir.Value]) -> list[ir.Node]:
    needed = {v.producer() for v in requested}
    for node in reversed(list(graph)):
        if node in needed:
            needed.update(v.producer() for v in _reads(node))
    return [node for node in graph if node in needed]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the node's own graph that it reads, directly or inside its subgraphs."""
    yield from (v for v in node.inputs if v is not None)
    for graph in subgraphs(node):
        for inner in ir.traversal.RecursiveGraphIterator(graph):
            yield from (v for v in inner.inputs if v is not None and v.graph is node.graph)


def _is_constant(node: ir.Node) -> bool:
    return is_standard(node, "Constant")


def _initializers(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    return list(dict.fromkeys(v for node in nodes for v in _reads(node) if v.is_initializer()))


def _count_alive(nodes: Sequence[ir.Node], last_read: Mapping[ir.Value, int]) -> np.ndarray:
    """For each cut ``i`` (before node ``i``): the number of values computed before it and read at or after it."""
    # A value counts from the cut behind its node up to the cut before its last reader: a running sum of both ends.
    change = np.zeros(len(nodes) + 2, np.int64)
    for i, node in enumerate(nodes):
        for value in node.outputs:
            last = last_read.get(value, -1)
            if last > i:
                change[i + 1] += 1
                change[last + 1] -= 1
    return np.cumsum(change)


def _next_cut(nodes: Sequence[ir.Node], start: int, max_bytes: int, alive: np.ndarray) -> int:
    """The end of the window that begins at node ``start``."""
    seen: set[ir.Value] = set()
    total, candidates = 0, []
    for i in range(start, len(nodes)):
        # A weight counts once, at its first reader.
        new = [v for v in _initializers(nodes[i : i + 1]) if v not in seen and v.const_value is not None]
        seen.update(new)
        total += sum(v.const_value.nbytes for v in new if v.const_value is not None)
        # Over the limit: the best cut so far, or here where a single node exceeds the limit.
        if total > max_bytes and i > start:
            return min(candidates, key=lambda cut: (alive[cut], -cut)) if candidates else i
        # Cuts before half of the limit would make many small windows.
        if 2 * total >= max_bytes:
            candidates.append(i + 1)
    return len(nodes)


def _window(nodes: Sequence[ir.Node], requested: Sequence[ir.Value], later: Collection[ir.Value]) -> Window:
    outputs = [v for node in nodes for v in node.outputs]
    computed = set(outputs)
    reads = dict.fromkeys(v for node in nodes for v in _reads(node))
    outside = [v for v in reads if v not in computed and not v.is_initializer()]
    constants = [node for v in outside if (node := v.producer()) is not None and _is_constant(node)]
    inputs = tuple(v for v in outside if v.producer() not in constants)
    captures = tuple(v for v in requested if v in computed)
    live = tuple(v for v in outputs if v in later)
    return Window((*constants, *nodes), inputs, captures, live, tuple(_initializers(nodes)))
