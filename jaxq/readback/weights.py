"""The quantized weights of an ONNX file, read back from its own bytes, whichever tool wrote it.

A quantized weight is a value that MatMul, Gemm, Conv or Gather reads and that nodes dequantize from constants alone; or
it is inside a MatMulNBits or GatherBlockQuantized node. The structure of the graph decides that; names are labels only.
`jaxq.readback.layouts` finds the tensors that each layout is made of; `jaxq.readback.constants` and
`jaxq.readback.operators` compute the numbers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from jaxq.graph.constants import all_initializers
from jaxq.graph.nodes import attribute
from jaxq.readback.constants import Place, ancestors_of, find_constants
from jaxq.readback.found_weight import FoundWeight, join_copies
from jaxq.readback.layouts import Layout, layout_of_constant, layout_of_gather, layout_of_matmulnbits
from jaxq.readback.nodes import (
    DEQUANTIZERS,
    UnknownLayoutError,
    bytes_of,
    is_code,
    malformed_as_unknown,
    operator_of,
    size_of,
)

_FUSED = {("com.microsoft", "MatMulNBits"), ("com.microsoft", "GatherBlockQuantized")}
"""Operators that read codes and scales, and dequantize them inside."""

_NodeInput = tuple[ir.Node, int]


@dataclass(frozen=True)
class Unread:
    """Something quantized that is not read back as a weight.

    Attributes:
        name: Its node's name, or its own.
        reason: Why it is not read back.
        size, nbytes: Number of its codes, and their bytes in the file.
    """

    name: str
    reason: str
    size: int = 0
    nbytes: int = 0


@dataclass(frozen=True, eq=False)
class Readback:
    """All that is quantized in a model.

    Attributes:
        weights: Quantized weights, in the order of the nodes that dequantize them.
        unread: What is quantized in a way that jaxq does not read.
        used: Initializers behind the weights, tables and shapes included.
    """

    weights: tuple[FoundWeight, ...]
    unread: tuple[Unread, ...]
    used: frozenset[ir.Value]


def read_weights(model: ir.Model) -> list[FoundWeight]:
    """The quantized weights of a model, in graph order; `read_back` also lists what jaxq cannot read."""
    return list(read_back(model).weights)


def read_back(model: ir.Model) -> Readback:
    """The quantized weights of a model, and what else is quantized in it.

    Args:
        model: From `jaxq.files.model_file.load_model`; it is not changed. Only weights that may be copies of each other
            are read from the file.
    """
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph)]
    constants = find_constants(nodes)
    weights: list[FoundWeight] = []
    unread: list[Unread] = []
    used: set[ir.Value] = set()
    visited: set[ir.Node] = set()
    for node in nodes:
        for place, readers in _places(node, constants):
            ancestors, tensors = ancestors_of(place)
            visited |= ancestors
            try:
                with malformed_as_unknown("nodes and tensors that do not fit each other"):
                    weights += list(_weights_at(place, readers))
            except UnknownLayoutError as error:
                codes = [value for value in tensors - used if is_code(value)]
                unread.append(_unread(str(node.name or place.name), str(error), codes))
            used |= tensors
    unread += [
        Unread(str(node.name), "it dequantizes what is computed when the model runs")
        for node in nodes
        if operator_of(node) in DEQUANTIZERS and node not in visited
    ]
    for value in all_initializers(model):
        if value not in used and is_code(value) and size_of(value) > 1:
            readers = ", ".join(dict.fromkeys(f"{n.op_type} as input {i}" for n, i in value.uses())) or "no node"
            unread.append(_unread(str(value.name), f"{value.dtype} that is read by {readers}", [value]))
    return Readback(tuple(join_copies(weights)), tuple(unread), frozenset(used))


def _places(node: ir.Node, constants: dict[ir.Value, bool]) -> Iterator[tuple[Place, list[_NodeInput]]]:
    """Weights that a node holds or dequantizes, each with the nodes that read it."""
    if operator_of(node) in _FUSED:
        yield node, []
        return
    for value in node.outputs:
        if constants.get(value) and (readers := _readers(value, constants)):
            yield value, readers


def _readers(value: ir.Value, constants: dict[ir.Value, bool]) -> list[_NodeInput]:
    """Nodes that read a constant and compute something that depends on an activation."""
    uses = [(node, index) for node, index in value.uses() if operator_of(node) not in _FUSED]
    return [(node, index) for node, index in uses if not any(out in constants for out in node.outputs)]


def _weights_at(place: Place, readers: Sequence[_NodeInput]) -> Iterator[FoundWeight]:
    """The weight at a place, once for each way in which nodes read it."""
    if isinstance(place, ir.Node):
        layout = layout_of_matmulnbits(place) if place.op_type == "MatMulNBits" else layout_of_gather(place)
        yield _weight(place, layout, layout.transposed, False, [place])
        return
    layout = layout_of_constant(place)
    nodes_by_way: dict[tuple[bool, bool], list[ir.Node]] = {}
    for node, index in readers:
        nodes_by_way.setdefault(_way_of_reading(node, index), []).append(node)
    for (_, transposes), nodes in nodes_by_way.items():
        if len(layout.shape) != 2 and transposes:
            raise UnknownLayoutError(f"a transposed weight of rank {len(layout.shape)}")
        yield _weight(place, layout, layout.transposed != transposes, transposes, nodes)


def _way_of_reading(node: ir.Node, index: int) -> tuple[bool, bool]:
    """Two answers: the node reads a weight in its own shape (a table or a kernel); it transposes the weight."""
    operator = operator_of(node)
    if operator == ("", "Gather") and index == 0:
        return True, False
    if operator == ("", "Conv") and index == 1:
        return True, False
    if operator in (("", "MatMul"), ("", "Gemm")) and index == 1:
        return False, node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
    raise UnknownLayoutError(f"a constant that is read by {node.op_type} as input {index}")


def _weight(
    place: Place, layout: Layout, transposed: bool, nodes_transpose: bool, nodes: Sequence[ir.Node]
) -> FoundWeight:
    if not np.prod(layout.shape):
        raise UnknownLayoutError(f"a weight of shape {list(layout.shape)}, without elements")
    form = "column_major" if layout.form == "dq" and transposed else layout.form
    stores_float = layout.code_bits is not None
    return FoundWeight(
        name=_label(layout),
        nodes=tuple(str(node.name) for node in nodes),
        ops=tuple(node.op_type for node in nodes),
        form=form,
        dtype=layout.dtype,
        block_size=layout.block_size,
        axis=layout.axis,
        transposed=transposed,
        shape=(*layout.shape[:-2], *layout.shape[:-3:-1]) if transposed else layout.shape,
        float_dtype=layout.float_dtype,
        nbytes=bytes_of(layout.tensors[stores_float:]) + -(-int(np.prod(layout.shape)) * (layout.code_bits or 0) // 8),
        file_nbytes=bytes_of(layout.tensors),
        copies=1,
        places=(place,),
        tensors=layout.tensors,
        nodes_transpose=nodes_transpose,
    )


def _label(layout: Layout) -> str:
    """The name of the float weight: jaxq and onnxruntime append words to it."""
    for tensor, ending in zip(layout.tensors[:2], ("_quantized", "_scale"), strict=True):
        if match := re.fullmatch(rf"(.+){ending}(_\d+)?", str(tensor.name)):
            return match[1]
    return str(layout.tensors[0].name)


def _unread(name: str, reason: str, codes: Sequence[ir.Value]) -> Unread:
    return Unread(name, reason, sum(map(size_of, codes)), bytes_of(codes))
