"""Quantized weights of an ONNX file, read back from its own bytes, whoever wrote it.

A weight is what a MatMul, Gemm, Conv or Gather reads of nodes that depend on constants alone and dequantize them, or
what a MatMulNBits or GatherBlockQuantized node holds. Structure decides what it is; names only label it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.graph.nodes import attribute
from jaxq.readback.constants import (
    BROKEN,
    DEQUANTIZERS,
    Place,
    UnclearError,
    array_at,
    array_of,
    bytes_of,
    clearly,
    find_constants,
    is_code,
    key_of,
    shape_of,
    size_of,
    tensor_of,
)
from jaxq.readback.layouts import Parts, find_parts, parts_of_product, parts_of_table

_HOLDERS = {("com.microsoft", "MatMulNBits"), ("com.microsoft", "GatherBlockQuantized")}


@dataclass(frozen=True, eq=False)
class FoundWeight:
    """One quantized weight of a file.

    Attributes:
        name: The float weight's name where the file was written by jaxq, or else the name of its codes.
        nodes, ops: Names of the nodes that read it, and their operators.
        form: A key of `jaxq.forms.FORMS`; INT8 of the TensorRT forms is standard ONNX, and reads as "dq" or "qdq".
        dtype: As far as the file says: codes of 3 bits that lie in INT4 are "int4".
        block_size: -1 for one block per channel, 0 for one scale in all.
        axis: The axis, of the weight as it is stored, that is split into blocks or into channels.
        transposed: It is stored [c_out, c_in].
        shape: [c_in, c_out] of ``y = x W``, of a stack [matrices, c_in, c_out]; or a table's or a kernel's own shape.
        float_dtype: Type of the activations.
        nbytes: Bytes of codes, scales and zero points, copies included; of the forms that hold the float weight, what
            its codes would take.
        file_nbytes: Bytes that the file holds: those of the float weight where it holds that.
        copies: How many times the file holds it: jaxq writes one for each node.
        places: Where it is, once for each time that nodes read it; the numbers are the same.
        tensors: Initializers that hold it: codes or the float weight, scales, zero points, the weight's scale.
        nodes_transpose: Nodes transpose what they read (Gemm with ``transB=1``).
    """

    name: str
    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    form: str
    dtype: str
    block_size: int
    axis: int
    transposed: bool
    shape: tuple[int, ...]
    float_dtype: ir.DataType
    nbytes: int
    file_nbytes: int
    copies: int
    places: tuple[Place, ...] = field(repr=False)
    tensors: tuple[ir.Value, ...] = field(repr=False)
    nodes_transpose: bool = field(default=False, repr=False)

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def bits(self) -> float:
        """Bits a weight: codes, scales and zero points."""
        return 8 * self.nbytes / self.size

    def dequantize(self) -> np.ndarray:
        """The weight that the bytes stand for, in the shape `shape`: numbers of the activations' type, in float32.

        Raises:
            JaxqError: codes and scales do not fit each other.
        """
        try:
            w = array_at(self.places[0]).astype(np.float32)
        except BROKEN as error:
            raise JaxqError(f"weight {self.name!r} has codes and scales that do not fit: {error}") from error
        return w.T if self.nodes_transpose else w


@dataclass(frozen=True)
class Unread:
    """Something quantized that is no weight that can be read: its name, why, and how much the file holds of it."""

    name: str
    reason: str
    size: int = 0
    nbytes: int = 0


@dataclass(frozen=True, eq=False)
class Readback:
    """All that is quantized in a model.

    Attributes:
        weights: In the order of the nodes that dequantize them.
        unread: What was not understood.
        used: Initializers behind the weights, tables and shapes included.
    """

    weights: tuple[FoundWeight, ...]
    unread: tuple[Unread, ...]
    used: frozenset[ir.Value]


def read_weights(model: ir.Model) -> list[FoundWeight]:
    """The quantized weights of a model, in the order of the graph; see `read_back` for what is not understood."""
    return list(read_back(model).weights)


def read_back(model: ir.Model) -> Readback:
    """The quantized weights of a model, and what else is quantized in it.

    Args:
        model: From `jaxq.files.model_file.load_model`; it is not changed. Of weights, only what may be copies is read.
    """
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph)]
    constants = find_constants(nodes)
    found: list[FoundWeight] = []
    unread: list[Unread] = []
    used: set[ir.Value] = set()
    seen: set[ir.Node] = set()
    for node in nodes:
        key = key_of(node)
        places = (
            [(node, [])] if key in _HOLDERS else [(v, _readers(v, constants)) for v in node.outputs if constants.get(v)]
        )
        for place, readers in places:
            if not readers and place is not node:
                continue
            behind, leaves = _behind(place)
            seen |= behind
            try:
                with clearly("nodes and tensors that do not fit each other"):
                    found += list(_weights_at(place, readers))
                used |= leaves
            except UnclearError as why:
                codes = [v for v in leaves - used if is_code(v)]
                used |= leaves
                unread.append(_unread(str(node.name or place.name), str(why), codes))
    unread += [
        Unread(str(n.name), "it dequantizes what is computed when the model runs")
        for n in nodes
        if key_of(n) in DEQUANTIZERS and n not in seen
    ]
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value not in used and is_code(value) and size_of(value) > 1:
                readers = ", ".join(dict.fromkeys(f"{n.op_type} as input {i}" for n, i in value.uses())) or "no node"
                unread.append(_unread(str(value.name), f"{value.dtype} that is read by {readers}", [value]))
    return Readback(tuple(_join_copies(found)), tuple(unread), frozenset(used))


def _readers(value: ir.Value, constants: dict[ir.Value, bool]) -> list[tuple[ir.Node, int]]:
    """Nodes that read a constant as a weight and compute something with an activation."""
    uses = [(n, i) for n, i in value.uses() if key_of(n) not in _HOLDERS]
    return [(n, i) for n, i in uses if not any(out in constants for out in n.outputs)]


def _weights_at(place: Place, readers: Sequence[tuple[ir.Node, int]]) -> Iterator[FoundWeight]:
    """The weight at a place, one for each way that nodes read it."""
    if isinstance(place, ir.Node):
        parts = parts_of_product(place) if place.op_type == "MatMulNBits" else parts_of_table(place)
        yield _weight(place, parts, parts.transposed, False, [place])
        return
    parts = find_parts(place)
    ways: dict[tuple[bool, bool], list[ir.Node]] = {}
    for node, index in readers:
        ways.setdefault(_way(node, index), []).append(node)
    for (_, flip), nodes in ways.items():
        if len(parts.shape) != 2 and flip:
            raise UnclearError(f"a transposed weight of rank {len(parts.shape)}")
        yield _weight(place, parts, parts.transposed != flip, flip, nodes)


def _way(node: ir.Node, index: int) -> tuple[bool, bool]:
    """Whether a node reads a weight in its own shape (a table or a kernel), and whether it transposes what it reads."""
    key = key_of(node)
    if key == ("", "Gather") and index == 0:
        return True, False
    if key == ("", "Conv") and index == 1:
        return True, False
    if key in (("", "MatMul"), ("", "Gemm")) and index == 1:
        return False, node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
    raise UnclearError(f"a constant that is read by {node.op_type} as input {index}")


def _weight(place: Place, parts: Parts, transposed: bool, flip: bool, nodes: Sequence[ir.Node]) -> FoundWeight:
    if not np.prod(parts.shape):
        raise UnclearError(f"a weight of shape {list(parts.shape)}, without elements")
    form = "column_major" if parts.form == "dq" and transposed else parts.form
    file_nbytes, nbytes = bytes_of(parts.tensors), bytes_of(parts.tensors[parts.code_bits is not None :])
    return FoundWeight(
        name=_label(parts),
        nodes=tuple(str(node.name) for node in nodes),
        ops=tuple(node.op_type for node in nodes),
        form=form,
        dtype=parts.dtype,
        block_size=parts.block_size,
        axis=parts.axis,
        transposed=transposed,
        shape=(*parts.shape[:-2], *parts.shape[:-3:-1]) if transposed else parts.shape,
        float_dtype=parts.float_dtype,
        nbytes=nbytes + -(-int(np.prod(parts.shape)) * (parts.code_bits or 0) // 8),
        file_nbytes=file_nbytes,
        copies=1,
        places=(place,),
        tensors=parts.tensors,
        nodes_transpose=flip,
    )


def _label(parts: Parts) -> str:
    """The name that the float weight had: jaxq and onnxruntime put words behind it."""
    for tensor, ending in zip(parts.tensors[:2], ("_quantized", "_scale"), strict=True):
        if match := re.fullmatch(rf"(.+){ending}(_\d+)?", str(tensor.name)):
            return match[1]
    return str(parts.tensors[0].name)


def _join_copies(found: Sequence[FoundWeight]) -> list[FoundWeight]:
    """Weights of one name and layout whose bytes are the same become one."""
    joined: dict[object, list[FoundWeight]] = {}
    for w in found:
        key = (w.name, w.form, w.dtype, w.block_size, w.axis, w.transposed, w.nodes_transpose, w.shape, w.float_dtype)
        same = joined.setdefault(key, [])
        for i, other in enumerate(same):
            if _same_bytes(w.tensors, other.tensors[: len(w.tensors)]):
                same[i] = _join(other, w)
                break
        else:
            same.append(w)
    order = {place: i for i, w in enumerate(found) for place in w.places}
    return sorted((w for same in joined.values() for w in same), key=lambda w: order[w.places[0]])


def _join(first: FoundWeight, second: FoundWeight) -> FoundWeight:
    tensors = tuple(dict.fromkeys((*first.tensors, *second.tensors)))
    again = first.tensors[0] in second.tensors
    return replace(
        first,
        nodes=first.nodes + second.nodes,
        ops=first.ops + second.ops,
        nbytes=first.nbytes + (0 if again else second.nbytes),
        file_nbytes=bytes_of(tensors),
        copies=first.copies + (not again),
        places=first.places + second.places,
        tensors=tensors,
    )


def _same_bytes(some: Sequence[ir.Value], others: Sequence[ir.Value]) -> bool:
    if [(v.dtype, shape_of(v)) for v in some] != [(v.dtype, shape_of(v)) for v in others]:
        return False
    pairs = zip(some, others, strict=True)
    return all(a is b or array_of(a).tobytes() == array_of(b).tobytes() for a, b in pairs)


def _behind(place: Place) -> tuple[set[ir.Node], set[ir.Value]]:
    """Nodes that a place depends on, and the initializers."""
    nodes: set[ir.Node] = set()
    leaves: set[ir.Value] = set()
    todo = [place] if isinstance(place, ir.Value) else _held(place)
    while todo:
        value = todo.pop()
        node = value.producer()
        if tensor_of(value) is not None:
            leaves.add(value)
        elif node is not None and node not in nodes:
            nodes.add(node)
            todo += [v for v in node.inputs if v is not None]
    return nodes, leaves


def _held(node: ir.Node) -> list[ir.Value]:
    """What a node that holds its weight itself reads of it: tensors, or what Reshape, Cast and Mul make of them."""
    values = node.inputs[1:4] if node.op_type == "MatMulNBits" else (*node.inputs[:1], *node.inputs[2:4])
    return [v for v in values if v is not None and _is_made_of_tensors(v)]


def _is_made_of_tensors(value: ir.Value) -> bool:
    node = value.producer()
    if tensor_of(value) is not None or node is None:
        return tensor_of(value) is not None
    return node.op_type in ("Reshape", "Cast", "Mul") and all(
        v is not None and _is_made_of_tensors(v) for v in node.inputs
    )


def _unread(name: str, reason: str, codes: Sequence[ir.Value]) -> Unread:
    return Unread(name, reason, sum(map(size_of, codes)), bytes_of(codes))
