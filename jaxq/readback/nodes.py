"""Inputs, types and shapes of the nodes around a quantized weight; a layout that is not known raises an error."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.graph.constants import static_shape
from jaxq.graph.nodes import STANDARD, attribute
from jaxq.graph.tensors import read_weight

DEQUANTIZERS = {
    ("", "DequantizeLinear"),
    ("com.microsoft", "DequantizeLinear"),
    ("trt", "TRT_INT4DequantizeLinear"),
    ("trt", "TRT_MXFP8DequantizeLinear"),
}
QUANTIZERS = {("", "QuantizeLinear"), ("com.microsoft", "QuantizeLinear"), ("trt", "TRT_INT4QuantizeLinear")}

_NOT_CODES = (ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED)
_E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)

E2M1_PAIRS = np.stack([np.tile(_E2M1, 16), np.repeat(_E2M1, 16)], axis=1)
"""[256, 2]: the two E2M1 numbers that each byte stands for, the one in the low bits first."""

MALFORMED = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, MemoryError)
"""What Python and numpy raise on attributes, shapes and bytes that no valid file has."""


class UnknownLayoutError(JaxqError):
    """A quantized tensor is not stored in any layout that jaxq reads."""


@contextmanager
def malformed_as_unknown(reason: str) -> Iterator[None]:
    """Turns what Python raises on a malformed file into an UnknownLayoutError that begins with ``reason``."""
    try:
        yield
    except JaxqError:
        raise
    except MALFORMED as error:
        raise UnknownLayoutError(f"{reason} ({type(error).__name__}: {' '.join(str(error).split())})") from error


def operator_of(node: ir.Node) -> tuple[str, str]:
    """Domain and operator of a node; "trt" for TensorRT's operators, which ModelOpt writes into the standard domain."""
    domain = "" if node.domain in STANDARD else node.domain
    return "trt" if not domain and node.op_type.startswith("TRT_") else domain, node.op_type


def is_code(value: ir.Value) -> bool:
    """True if a value's type is one that codes have: at most 8 bits."""
    return value.dtype is not None and value.dtype not in _NOT_CODES and value.dtype.bitwidth <= 8


def decodes(node: ir.Node) -> bool:
    """True if a node turns codes into floats: a Cast of 8 bits, or a Gather of two numbers for each byte."""
    if node.op_type == "Cast":
        codes = input_of(node, 0)
        return is_code(codes) and type_of(codes).is_floating_point()
    if node.op_type != "Gather" or shape_of(input_of(node, 0)) != E2M1_PAIRS.shape:
        return False
    cast = input_of(node, 1).producer()
    return cast is not None and cast.op_type == "Cast" and input_of(cast, 0).dtype == ir.DataType.UINT8


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None where the node leaves it out."""
    return node.inputs[index] if index < len(node.inputs) else None


def input_of(node: ir.Node, index: int) -> ir.Value:
    """An input that a node has to have."""
    if (value := optional_input(node, index)) is None:
        raise UnknownLayoutError(f"{node.op_type} without input {index}")
    return value


def producer_of(node: ir.Node, index: int) -> ir.Node:
    """The node that computes an input of another."""
    producer = input_of(node, index).producer()
    if producer is None:
        raise UnknownLayoutError(f"{node.op_type} of a constant")
    return producer


def matmulnbits_sizes(node: ir.Node) -> tuple[int, int, int, int]:
    """K, N, bits and block size of a MatMulNBits node."""
    defaults = {"K": 0, "N": 0, "bits": 4, "block_size": 32}
    k, n, bits, block = (int(attribute(node, name, default)) for name, default in defaults.items())
    if min(k, n, block) < 1:
        raise UnknownLayoutError(f"a MatMulNBits node with K={k}, N={n} and block_size={block}")
    return k, n, bits, block


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None for any other value."""
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:  # a kind of Constant that onnx_ir does not know
        return None


def array_of(value: ir.Value) -> np.ndarray:
    """A copy of the numbers of an initializer or of a Constant node.

    Raises:
        UnknownLayoutError: its bytes do not fit its type and shape.
    """
    with malformed_as_unknown(f"tensor {value.name!r} has bytes that do not fit its type and shape"):
        return read_weight(ir.Value(const_value=tensor_of(value)))


def type_of(value: ir.Value) -> ir.DataType:
    """The type of a constant, as the nodes that compute it define it."""
    if (tensor := tensor_of(value)) is not None:
        return tensor.dtype
    node = value.producer()
    if node is None:
        raise UnknownLayoutError(f"{value.name!r}, which is no constant")
    if to := attribute(node, "to", 0) or attribute(node, "output_dtype", 0):
        with malformed_as_unknown(f"{node.op_type} to a type that does not exist"):
            return ir.DataType(int(to))
    if node.op_type == "TRT_MXFP8DequantizeLinear":
        return ir.DataType.FLOAT
    if node.op_type == "TRT_INT4QuantizeLinear":
        return ir.DataType.INT4
    if operator_of(node) in DEQUANTIZERS:
        return type_of(input_of(node, 1))
    if operator_of(node) in QUANTIZERS:
        return type_of(input_of(node, 2)) if len(node.inputs) > 2 else ir.DataType.UINT8
    return type_of(input_of(node, 0))


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The shape of a tensor; () for a value that is computed."""
    tensor = tensor_of(value)
    return () if tensor is None else static_shape(tensor)


def size_of(value: ir.Value) -> int:
    """Number of elements of a tensor; 1 for a value that is computed."""
    return int(np.prod(shape_of(value)))


def bytes_of(values: Sequence[ir.Value]) -> int:
    """Bytes that tensors take together."""
    tensors = map(tensor_of, values)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
