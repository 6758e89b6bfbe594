"""Constants that nodes compute from other constants: which values these are, and their numbers."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from jaxq.graph.nodes import attribute
from jaxq.readback.nodes import (
    DEQUANTIZERS,
    UnknownLayoutError,
    array_of,
    decodes,
    input_of,
    matmulnbits_sizes,
    operator_of,
    optional_input,
    tensor_of,
)
from jaxq.readback.operators import OPERATORS, repeat_blocks

Place = ir.Value | ir.Node
"""Where a weight is: the value that nodes read it from, or the node that holds it (MatMulNBits, ...)."""


def find_constants(nodes: Sequence[ir.Node]) -> dict[ir.Value, bool]:
    """Values that nodes compute from constants alone, each with whether codes are dequantized on the way.

    Args:
        nodes: In topological order.
    """
    constants: dict[ir.Value, bool] = {}
    for node in nodes:
        inputs = [value for value in node.inputs if value is not None]
        if operator_of(node) not in OPERATORS or not inputs or not node.outputs:
            continue
        if not all(value in constants or tensor_of(value) is not None for value in inputs):
            continue
        if node.op_type == "Gather" and inputs[0] in constants:
            continue  # it reads rows of a table; a Gather that decodes has an initializer as its table
        try:
            has_floats = decodes(node)
        except UnknownLayoutError:
            continue
        dequantizes = operator_of(node) in DEQUANTIZERS or has_floats
        constants[node.outputs[0]] = dequantizes or any(map(constants.get, inputs))
    return constants


def array_at(place: Place) -> np.ndarray:
    """The numbers of a weight as the nodes read them, in the activations' type."""
    if isinstance(place, ir.Value):
        return compute(place)
    return _matmulnbits_weight(place) if place.op_type == "MatMulNBits" else _block_quantized_table(place)


def compute(value: ir.Value) -> np.ndarray:
    """The numbers of a constant, each operator as ONNX defines it."""
    if tensor_of(value) is not None:
        return array_of(value)
    node = value.producer()
    if node is None:
        raise UnknownLayoutError(f"{value.name!r}, which is no constant")
    return OPERATORS[operator_of(node)](node, *(None if v is None else compute(v) for v in node.inputs))


def constant_input(node: ir.Node, index: int) -> np.ndarray:
    """The numbers of an input that has to be a tensor of the file."""
    if tensor_of(input_of(node, index)) is None:
        raise UnknownLayoutError(f"{node.op_type} with input {index} that is computed")
    return array_of(input_of(node, index))


def ancestors_of(place: Place) -> tuple[set[ir.Node], set[ir.Value]]:
    """The nodes that compute a weight, and the tensors that they start from."""
    nodes: set[ir.Node] = set()
    tensors: set[ir.Value] = set()
    pending = [place] if isinstance(place, ir.Value) else _weight_inputs(place)
    while pending:
        value = pending.pop()
        node = value.producer()
        if tensor_of(value) is not None:
            tensors.add(value)
        elif node is not None and node not in nodes:
            nodes.add(node)
            pending += [v for v in node.inputs if v is not None]
    return nodes, tensors


def _weight_inputs(node: ir.Node) -> list[ir.Value]:
    """Codes, scales and zero points of a node that holds its weight itself, as far as they are constants."""
    values = node.inputs[1:4] if node.op_type == "MatMulNBits" else (*node.inputs[:1], *node.inputs[2:4])
    return [value for value in values if value is not None and _is_computed_from_tensors(value)]


def _is_computed_from_tensors(value: ir.Value) -> bool:
    node = value.producer()
    if tensor_of(value) is not None or node is None:
        return tensor_of(value) is not None
    return node.op_type in ("Reshape", "Cast", "Mul") and all(
        v is not None and _is_computed_from_tensors(v) for v in node.inputs
    )


def _matmulnbits_weight(node: ir.Node) -> np.ndarray:
    """The weight [K, N] of a MatMulNBits node."""
    k, n, bits, block = matmulnbits_sizes(node)
    n_blocks = -(-k // block)
    scales = compute(input_of(node, 2))
    s = scales.astype(np.float32).reshape(n, n_blocks, 1)
    zp: np.ndarray | int = 2 ** (bits - 1)
    if (zero_points := optional_input(node, 3)) is not None:
        zp = compute(zero_points)
        zp = _unpack(zp.reshape(n, -1), bits)[:, :n_blocks] if zp.dtype == np.uint8 else zp.reshape(n, n_blocks)
        zp = zp.astype(np.float32)[..., None]
    codes = _unpack(compute(input_of(node, 1)).reshape(n, n_blocks, -1), bits)
    w = (codes.astype(np.float32) - zp) * s
    return w.reshape(n, -1)[:, :k].T.astype(scales.dtype)


def _block_quantized_table(node: ir.Node) -> np.ndarray:
    """The table of a GatherBlockQuantized node."""
    codes, scales, *more = (compute(v) for i, v in enumerate(node.inputs) if i != 1 and v is not None)
    zp = more[0] if more else None
    if codes.dtype == np.uint8:
        bits = int(attribute(node, "bits", 4))
        codes = _unpack(codes, bits)
        zp = np.full(scales.shape, 2 ** (bits - 1)) if zp is None else _unpack(zp, bits)[..., : scales.shape[-1]]
    axis = int(attribute(node, "quantize_axis", 1)) % codes.ndim
    block = int(attribute(node, "block_size", 128)) or codes.shape[axis]
    w = codes.astype(np.float32)
    if zp is not None:
        w -= repeat_blocks(zp.astype(np.float32), block, axis, codes.shape[axis])
    return (w * repeat_blocks(scales.astype(np.float32), block, axis, codes.shape[axis])).astype(scales.dtype)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes in bytes, along the last axis; the code in a byte's low bits comes first."""
    codes = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & (2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)
