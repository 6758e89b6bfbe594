"""Constants that nodes of a graph compute: which they are, and their numbers, each operator as ONNX defines it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.graph.nodes import attribute
from jaxq.graph.tensors import read_weight

Place = ir.Value | ir.Node
"""Where a weight is: the value that nodes read it from, or the node that holds it (MatMulNBits, ...)."""


DEQUANTIZERS = {
    ("", "DequantizeLinear"),
    ("com.microsoft", "DequantizeLinear"),
    ("trt", "TRT_INT4DequantizeLinear"),
    ("trt", "TRT_MXFP8DequantizeLinear"),
}


QUANTIZERS = {("", "QuantizeLinear"), ("com.microsoft", "QuantizeLinear"), ("trt", "TRT_INT4QuantizeLinear")}


_NOT_CODES = (ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED)


_E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


PAIRS = np.stack([np.tile(_E2M1, 16), np.repeat(_E2M1, 16)], axis=1)


class UnclearError(JaxqError):
    """Constants that are not laid out as a form that is known."""


BROKEN = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, MemoryError)
"""What Python and numpy say of attributes, shapes and bytes that no valid file has."""


@contextmanager
def clearly(what: str) -> Iterator[None]:
    """Turns what Python says of a broken file into an UnclearError that begins with ``what``."""
    try:
        yield
    except JaxqError:
        raise
    except BROKEN as error:
        raise UnclearError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())})") from error


def find_constants(nodes: Sequence[ir.Node]) -> dict[ir.Value, bool]:
    """Values that nodes compute of constants alone; True for those that something is dequantized for."""
    found: dict[ir.Value, bool] = {}
    for node in nodes:
        values = [v for v in node.inputs if v is not None]
        if key_of(node) not in _OPERATORS or not values or not node.outputs:
            continue
        if not all(v in found or tensor_of(v) is not None for v in values):
            continue
        if node.op_type == "Gather" and values[0] in found:
            continue  # a table that is read, not one that codes are looked up in
        try:
            floats = makes_floats(node)
        except UnclearError:
            continue
        found[node.outputs[0]] = key_of(node) in DEQUANTIZERS or floats or any(map(found.get, values))
    return found


def array_at(place: Place) -> np.ndarray:
    """The numbers at a place as the nodes there read them, in the activations' type."""
    if isinstance(place, ir.Value):
        return _compute(place)
    return _products_weight(place) if place.op_type == "MatMulNBits" else _tables_rows(place)


def _compute(value: ir.Value) -> np.ndarray:
    """A constant's numbers, each operator as ONNX defines it."""
    tensor = tensor_of(value)
    if tensor is not None:
        return array_of(value)
    node = value.producer()
    if node is None:
        raise UnclearError(f"{value.name!r}, which is no constant")
    return _OPERATORS[key_of(node)](node, *(None if v is None else _compute(v) for v in node.inputs))


def array_of(value: ir.Value) -> np.ndarray:
    """A copy of the numbers of an initializer or of a Constant node.

    Raises:
        UnclearError: its bytes do not fit its type and shape.
    """
    with clearly(f"tensor {value.name!r} has bytes that do not fit its type and shape"):
        return read_weight(ir.Value(const_value=tensor_of(value)))


def _dequantize(node: ir.Node, x: np.ndarray, s: np.ndarray, zp: np.ndarray | None = None) -> np.ndarray:
    dtype = type_of(node.outputs[0]).numpy()
    if node.op_type == "TRT_MXFP8DequantizeLinear" and s.dtype == np.uint8:
        s = s.view(ml_dtypes.float8_e8m0fnu)
    w = x.astype(np.float32)
    if zp is not None:
        w -= _spread(node, zp, w.shape)
    w *= _spread(node, s, w.shape)
    return w.astype(dtype, copy=False)


def _quantize(node: ir.Node, x: np.ndarray, s: np.ndarray, zp: np.ndarray | None = None) -> np.ndarray:
    dtype = type_of(node.outputs[0])
    q = np.rint(x.astype(np.float32) / _spread(node, s, x.shape))
    if zp is not None:
        q += _spread(node, zp, x.shape)
    least = -(2 ** (dtype.bitwidth - 1)) if dtype.is_signed() else 0
    return np.clip(q, least, least + 2**dtype.bitwidth - 1).astype(np.int16).astype(dtype.numpy())


def _spread(node: ir.Node, parameters: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scales or zero points in float32, one for each element or in a shape that numpy brings to that."""
    p = parameters.astype(np.float32)
    if p.size == 1:
        return p.reshape(())
    axis, block = blocks_of(node, shape, p.shape)
    if block <= 0 and p.ndim == len(shape):
        return p
    if block <= 0:
        return p.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return _repeat(p, block, axis, shape[axis])


def blocks_of(node: ir.Node, shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int]:
    """The axis of blocks or channels and the block size: -1 for channels, 0 for one scale in all.

    ModelOpt leaves attributes out where the scales' shape says it all: blocks lie along the axis on which that differs
    from the codes'. How long they are it says only within bounds: the power of two is taken, or else the shortest.
    """
    rank, block = len(shape), int(attribute(node, "block_size", 0))
    axis = int(attribute(node, "axis", 1))
    if block < 0:
        raise UnclearError(f"{node.op_type} with block_size={block}")
    if not np.prod(scales, dtype=int) > 1 and not block:
        axis = axis if -rank <= axis < rank else 0
        return axis % rank, -1 if scales and shape[axis] == 1 else 0
    differ = [i for i, (size, count) in enumerate(zip(shape, scales, strict=False)) if size != count]
    whole = len(scales) == rank > 1
    if whole and len(differ) == 1 and ("axis" not in node.attributes or not block):
        axis = differ[0]
    if rank > 1 and not -rank <= axis < rank:
        raise UnclearError(f"{node.op_type} with axis={axis} of codes of rank {rank}")
    axis %= rank
    if block or not whole:
        return axis, block or -1
    if len(differ) > 1:
        raise UnclearError(f"{node.op_type} with codes of shape {list(shape)} and scales of shape {list(scales)}")
    size, count = shape[axis], scales[axis]
    if count == 1 and rank == 2:
        return 1 - axis, -1
    if not 0 < count <= size:
        raise UnclearError(f"{node.op_type} with codes of shape {list(shape)} and scales of shape {list(scales)}")
    least = -(-size // count)
    power = 1 << (least - 1).bit_length()
    return axis, power if count > 1 and -(-size // power) == count else least


def _repeat(parameters: np.ndarray, block: int, axis: int, size: int) -> np.ndarray:
    """Each entry ``block`` times along an axis; the last block may be cut off."""
    return np.take(parameters, np.arange(size) // block, axis)


def _cast(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return x.astype(ir.DataType(int(attribute(node, "to", 1))).numpy(), copy=False)


def _reshape(node: ir.Node, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    zero = not attribute(node, "allowzero", 0)
    return x.reshape([x.shape[i] if zero and not d else int(d) for i, d in enumerate(shape)])


def _pad(node: ir.Node, x: np.ndarray, pads: np.ndarray, value: np.ndarray | None = None) -> np.ndarray:
    del node
    ends = [(int(a), int(b)) for a, b in pads.reshape(2, -1).T]
    return np.pad(x, ends, constant_values=0 if value is None else value.item())


def _slice(node: ir.Node, x: np.ndarray, starts: np.ndarray, ends: np.ndarray, *more: np.ndarray | None) -> np.ndarray:
    del node
    axes = np.arange(len(starts)) if not more or more[0] is None else more[0]
    steps = np.ones_like(starts) if len(more) < 2 or more[1] is None else more[1]
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[int(axis)] = slice(int(start), int(end), int(step))
    return x[tuple(cut)]


_OPERATORS: dict[tuple[str, str], Callable[..., np.ndarray]] = {
    **dict.fromkeys(DEQUANTIZERS, _dequantize),
    **dict.fromkeys(QUANTIZERS, _quantize),
    ("", "Identity"): lambda node, x: x,
    ("", "Cast"): _cast,
    ("", "Transpose"): lambda node, x: np.transpose(x, node.attributes.get_ints("perm", None)),
    ("", "Reshape"): _reshape,
    ("", "Pad"): _pad,
    ("", "Slice"): _slice,
    ("", "Gather"): lambda node, x, indices: np.take(x, indices, int(attribute(node, "axis", 0))),
    ("", "Mul"): lambda node, x, y: x * y,
    ("", "Sub"): lambda node, x, y: x - y,
    ("", "Pow"): lambda node, x, y: np.power(x, y),
}
"""Operators that constants are followed through."""


def _products_weight(node: ir.Node) -> np.ndarray:
    """[K, N] of a MatMulNBits node."""
    k, n, bits, block = product_numbers(node)
    n_blocks = -(-k // block)
    scales = _compute(input_of(node, 2))
    s = scales.astype(np.float32).reshape(n, n_blocks, 1)
    zp: np.ndarray | int = 2 ** (bits - 1)
    if (packed := optional_input(node, 3)) is not None:
        zp = _compute(packed)
        zp = _unpack(zp.reshape(n, -1), bits)[:, :n_blocks] if zp.dtype == np.uint8 else zp.reshape(n, n_blocks)
        zp = zp.astype(np.float32)[..., None]
    codes = _unpack(_compute(input_of(node, 1)).reshape(n, n_blocks, -1), bits)
    w = (codes.astype(np.float32) - zp) * s
    return w.reshape(n, -1)[:, :k].T.astype(scales.dtype)


def _tables_rows(node: ir.Node) -> np.ndarray:
    """The table of a GatherBlockQuantized node."""
    codes, scales, *more = (_compute(v) for i, v in enumerate(node.inputs) if i != 1 and v is not None)
    zp = more[0] if more else None
    if codes.dtype == np.uint8:
        bits = int(attribute(node, "bits", 4))
        codes = _unpack(codes, bits)
        zp = np.full(scales.shape, 2 ** (bits - 1)) if zp is None else _unpack(zp, bits)[..., : scales.shape[-1]]
    axis = int(attribute(node, "quantize_axis", 1)) % codes.ndim
    block = int(attribute(node, "block_size", 128)) or codes.shape[axis]
    w = codes.astype(np.float32)
    if zp is not None:
        w -= _repeat(zp.astype(np.float32), block, axis, codes.shape[axis])
    return (w * _repeat(scales.astype(np.float32), block, axis, codes.shape[axis])).astype(scales.dtype)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of bytes, those in the low bits first, along the last axis."""
    codes = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & (2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def key_of(node: ir.Node) -> tuple[str, str]:
    """Domain and operator; ModelOpt writes TensorRT's operators into the standard domain."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return "trt" if not domain and node.op_type.startswith("TRT_") else domain, node.op_type


def makes_floats(node: ir.Node) -> bool:
    """Whether a node makes floats of codes: a Cast of 8 bits, or a Gather of a pair of numbers for each byte."""
    if node.op_type == "Cast":
        codes = input_of(node, 0)
        return is_code(codes) and type_of(codes).is_floating_point()
    if node.op_type != "Gather" or shape_of(input_of(node, 0)) != PAIRS.shape:
        return False
    cast = input_of(node, 1).producer()
    return cast is not None and cast.op_type == "Cast" and input_of(cast, 0).dtype == ir.DataType.UINT8


def is_code(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype not in _NOT_CODES and value.dtype.bitwidth <= 8


def type_of(value: ir.Value) -> ir.DataType:
    """The type of a constant, by the nodes that compute it."""
    if (tensor := tensor_of(value)) is not None:
        return tensor.dtype
    node = value.producer()
    if node is None:
        raise UnclearError(f"{value.name!r}, which is no constant")
    if to := attribute(node, "to", 0) or attribute(node, "output_dtype", 0):
        with clearly(f"{node.op_type} to a type that does not exist"):
            return ir.DataType(int(to))
    if node.op_type == "TRT_MXFP8DequantizeLinear":
        return ir.DataType.FLOAT
    if node.op_type == "TRT_INT4QuantizeLinear":
        return ir.DataType.INT4
    if key_of(node) in DEQUANTIZERS:
        return type_of(input_of(node, 1))
    if key_of(node) in QUANTIZERS:
        return type_of(input_of(node, 2)) if len(node.inputs) > 2 else ir.DataType.UINT8
    return type_of(input_of(node, 0))


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node."""
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:  # a kind of Constant that onnx_ir does not know
        return None


def constant_of(node: ir.Node, index: int) -> np.ndarray:
    if tensor_of(input_of(node, index)) is None:
        raise UnclearError(f"{node.op_type} with input {index} that is computed")
    return _compute(input_of(node, index))


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def input_of(node: ir.Node, index: int) -> ir.Value:
    if (value := optional_input(node, index)) is None:
        raise UnclearError(f"{node.op_type} without input {index}")
    return value


def producer_of(node: ir.Node, index: int) -> ir.Node:
    producer = input_of(node, index).producer()
    if producer is None:
        raise UnclearError(f"{node.op_type} of a constant")
    return producer


def product_numbers(node: ir.Node) -> tuple[int, int, int, int]:
    """K, N, bits and block size of a MatMulNBits node."""
    k, n, bits, block = (int(attribute(node, key, old)) for key, old in zip(_KEYS, (0, 0, 4, 32), strict=True))
    if min(k, n, block) < 1:
        raise UnclearError(f"a MatMulNBits node with K={k}, N={n} and block_size={block}")
    return k, n, bits, block


_KEYS = ("K", "N", "bits", "block_size")


def shape_of(value: ir.Value) -> tuple[int, ...]:
    tensor = tensor_of(value)
    return () if tensor is None else tuple(int(d) for d in tensor.shape.numpy())


def size_of(value: ir.Value) -> int:
    return int(np.prod(shape_of(value)))


def bytes_of(values: Sequence[ir.Value]) -> int:
    tensors = map(tensor_of, values)
    return sum(t.nbytes for t in tensors if t is not None)
