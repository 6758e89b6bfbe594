"""The nodes that read a weight, in subgraphs too; for a table, also those behind Transpose and Cast."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from jaxq.graph.nodes import attribute, is_standard


@dataclass(frozen=True, eq=False)
class Reader:
    """A node that reads a weight.

    Attributes:
        node, index: The node, and which of its inputs.
        transposed: It reads the weight transposed: by nodes between, or by its own ``transB``.
        dtype: The type that it reads: the weight's, or that of a Cast between.
    """

    node: ir.Node
    index: int
    transposed: bool
    dtype: ir.DataType

    @property
    def table(self) -> bool:
        """It looks up rows of the weight."""
        return is_table(self.node) and self.index == 0


def is_table(node: ir.Node) -> bool:
    """True if a node looks its weight up rather than multiplying by it."""
    return is_standard(node, "Gather")


def find_readers(weight: ir.Value) -> list[Reader]:
    """The nodes that read an initializer.

    Readers behind a Transpose or a Cast are found only where Gather reads the weight too: for other weights
    `jaxq.graph.prepare.prepare` has removed these nodes.
    """
    assert weight.dtype is not None
    direct = [Reader(node, index, _transposes(node), weight.dtype) for node, index in weight.uses()]
    if not any(reader.table for reader in direct):
        return direct
    return [behind for reader in direct for behind in _behind(reader)]


def float_type(weight: ir.Value, node: ir.Node) -> ir.DataType:
    """The type in which a node reads a weight: that of the last Cast between, or else the weight's own."""
    dtype = next(dtype for value in node.inputs if (dtype := _type_below(weight, value)) is not None)
    assert dtype is not None
    return dtype


def _type_below(weight: ir.Value, value: ir.Value | None) -> ir.DataType | None:
    """The type of a value that is the weight or a view of it; None for any other value."""
    if value is weight or value is None:
        return value and value.dtype
    node = value.producer()
    if node is None or node.op_type not in ("Transpose", "Cast"):
        return None
    above = _type_below(weight, node.inputs[0])
    return ir.DataType(node.attributes.get_int("to", int(above))) if above else None


def views_of(weight: ir.Value) -> Iterator[ir.Value]:
    """Outputs of the nodes Transpose and Cast between a weight and its readers."""
    for node, _ in weight.uses():
        if node.op_type in ("Transpose", "Cast"):
            yield node.outputs[0]
            yield from views_of(node.outputs[0])


def _behind(reader: Reader) -> Iterator[Reader]:
    """The readers behind a Transpose or a Cast; any other reader itself."""
    node, transposed, dtype = reader.node, reader.transposed, reader.dtype
    if _is_transpose(node):
        transposed = not transposed
    elif is_standard(node, "Cast"):
        dtype = ir.DataType(node.attributes.get_int("to", int(dtype)))
    else:
        yield reader
        return
    if node.outputs[0].is_graph_output() or not dtype.is_floating_point():
        yield reader
        return
    for behind, index in node.outputs[0].uses():
        yield from _behind(Reader(behind, index, transposed != _transposes(behind), dtype))


def _is_transpose(node: ir.Node) -> bool:
    perm: Sequence[int] = node.attributes.get_ints("perm", (1, 0))
    return is_standard(node, "Transpose") and tuple(perm) == (1, 0)


def _transposes(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
