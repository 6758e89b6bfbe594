"""Ties that exporters hide: a table that is the transposed head, or a head that is a copy of the table.

jaxq quantizes one initializer [rows, c_in] that Gather reads, and products through a Transpose. Two other ways of
writing a tie are brought into that shape, so that one quantized tensor serves both:

- the head [c_in, rows] is the initializer, and Gather reads it through a Transpose (onnxruntime-genai's builder):
  `share_transposed`;
- head and table are two initializers with the same numbers (torch.onnx, which folds the Transpose into a copy, and the
  builder without shared embeddings): `share_copies`.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from jaxq.graph.constants import FLOATS, weight_shape
from jaxq.graph.edit import Names, drop_unused
from jaxq.graph.nodes import attribute, is_standard
from jaxq.graph.normalize.steps import Permuted
from jaxq.graph.normalize.views import View, is_product, own_mapping

_HEAD = "jaxq.head"
"""Key of a node's metadata, which no file stores: the initializer that products read before the tie was shared."""
_ROWS = 1024
_SWAP = (1, 0)


def share_transposed(model: ir.Model) -> None:
    """Makes the transposed head the initializer where Gather reads it, in place; the model's outputs stay the same.

    Args:
        model: A model that went through `jaxq.graph.prepare.prepare`. No number is read.
    """
    names = Names(model)
    for graph in list(model.graphs()):
        for head in list(graph.initializers.values()):
            if transposes := _tables_of(head):
                _swap(graph, head, transposes, names)


def share_copies(model: ir.Model, keeps_own: Callable[[ir.Value], bool] = lambda head: False) -> list[tuple[str, str]]:
    """Makes products that multiply by a copy of a table read the table, in place; the outputs stay the same.

    Args:
        model: A model that went through `jaxq.graph.prepare.prepare`. Numbers are read only where a table and a head
            have the same sizes.
        keeps_own: True for a head that stays an initializer of its own even where it is a copy, because it is treated
            otherwise: excluded, or in another format.

    Returns:
        The names of each head and its table.
    """
    names, shared = Names(model), []
    matrices = [v for v in model.graph.initializers.values() if _is_matrix(v)]
    tables = [v for v in matrices if any(is_table_input(node, index) for node, index in v.uses())]
    heads = [v for v in matrices if v.uses() and all(is_product(node, index) for node, index in v.uses())]
    for head in heads if tables else []:
        table = None if keeps_own(head) else next((t for t in tables if _is_copy(t, head)), None)
        if table is None:
            continue
        shared.append((str(head.name), str(table.name)))
        if _is_swapped(head):
            _read_through_transpose(model.graph, head, table, names)
        else:  # Gemm with transB reads the table as it is
            head.replace_all_uses_with(table)
            drop_unused([head])
    return shared


def restore_ties(model: ir.Model) -> None:
    """Lets products that were not quantized read their own initializer again, as before the tie was shared."""
    for node in list(model.graph.all_nodes()):
        head = node.meta.get(_HEAD)
        if head is None:
            continue
        if head.graph is None and node.graph is not None:
            model.graph.register_initializer(head)
        node.outputs[0].replace_all_uses_with(head)
        drop_unused([node.outputs[0]])


def is_table_input(node: ir.Node, index: int) -> bool:
    """True if a node looks up rows of its input ``index``."""
    return index == 0 and is_standard(node, "Gather") and attribute(node, "axis", 0) == 0


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    plain = value.is_initializer() and not value.is_graph_input() and not value.is_graph_output()
    return plain and tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) == 2


def _tables_of(head: ir.Value) -> list[ir.Node]:
    """The nodes that transpose a head for Gather; none where a node other than a product or these reads the head."""
    if not _is_matrix(head):
        return []
    transposes = [node for node, index in head.uses() if not is_product(node, index)]
    if len(transposes) == len(head.uses()) or not all(map(_feeds_table, transposes)):
        return []
    return transposes


def _feeds_table(node: ir.Node) -> bool:
    swaps = is_standard(node, "Transpose") and tuple(node.attributes.get_ints("perm", _SWAP)) == _SWAP
    if not swaps or node.outputs[0].is_graph_output():
        return False
    uses = node.outputs[0].uses()
    return bool(uses) and all(is_table_input(reader, index) for reader, index in uses)


def _swap(graph: ir.Graph, head: ir.Value, transposes: list[ir.Node], names: Names) -> None:
    """The transposed head becomes the initializer."""
    first = transposes[0]
    step = Permuted(_SWAP)
    view = View(head, (step,), ((str(first.name), str(first.outputs[0].name)),))
    table = names.initializer(graph, f"{head.name}_{step.suffix}", view)
    for node in transposes:
        node.outputs[0].replace_all_uses_with(table)
        drop_unused([node.outputs[0]])
    _read_through_transpose(graph, head, table, names)


def _read_through_transpose(graph: ir.Graph, head: ir.Value, table: ir.Value, names: Names) -> None:
    """Products that read ``head`` read the transposed ``table`` in its place."""
    name = names.unique(f"{head.name}_from_table")
    out = ir.Value(name=name, type=head.type, shape=head.shape)
    swap = ir.Node("", "Transpose", [table], [ir.AttrInt64s("perm", _SWAP)], outputs=[out], name=f"{name}_Transpose")
    swap.meta[_HEAD] = head
    graph.insert_before(graph[0], swap)
    for node, index in tuple(head.uses()):
        node.replace_input_with(index, out)
    drop_unused([head])


def _is_swapped(head: ir.Value) -> bool:
    """True if products read a head as [c_in, rows]; Gemm with transB reads [rows, c_in]."""
    return not all(attribute(node, "transB", 0) for node, _ in head.uses())


def _is_copy(table: ir.Value, head: ir.Value) -> bool:
    """True if a head has the numbers of a table, transposed where its products read it so."""
    swapped = _is_swapped(head)
    shape = weight_shape(head)
    if table.dtype != head.dtype or (shape[::-1] if swapped else shape) != weight_shape(table):
        return False
    first, second = _numbers(table), _numbers(head)
    return all(np.array_equal(a, b) for a, b in _slices(first, second.T if swapped else second))


def _slices(table: np.ndarray, head: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of both, a few first: two matrices that differ do so there."""
    edges = [0, 1, *range(_ROWS, len(table), _ROWS), len(table)]
    for start, end in itertools.pairwise(edges):
        yield table[start:end], head[start:end]


def _numbers(value: ir.Value) -> np.ndarray:
    tensor = value.const_value
    assert tensor is not None
    return (own_mapping(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor).numpy()
