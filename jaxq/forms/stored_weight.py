"""A quantized weight as files hold it, and the tensors that hold it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir

from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.formats.registry import WeightFormat

_INTEGERS = {
    (4, False): ir.DataType.INT4,
    (4, True): ir.DataType.UINT4,
    (8, False): ir.DataType.INT8,
    (8, True): ir.DataType.UINT8,
}


Read = Callable[[], np.ndarray]
"""Gives an array; it is read, or made, anew each time."""


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """Codes and scales of one weight, read when a file is written and not kept: a model's do not fit into memory.

    Attributes:
        codes: [c_in, c_out] int8, uint8 or float8 for formats of 8 bits; else packed bytes, two codes each, row by row.
        s: Scales [n_blocks, c_out]: floats, float8 E4M3 (over ``s2``), or uint8 exponents (MX).
        zp: [n_blocks, c_out] uint8, or None.
        s2: What float8 scales are over, one for the weight, or None.
        shape: [c_in, c_out]; the matrices of a stack lie side by side, as more columns.
        fmt: How the codes were made.
    """

    codes: Read
    s: Read
    zp: Read | None
    s2: Read | None
    shape: tuple[int, int]
    fmt: WeightFormat

    @classmethod
    def of(cls, arrays: "Arrays", shape: tuple[int, int], fmt: WeightFormat) -> "StoredWeight":
        """A weight whose arrays are in memory."""
        zp = None if arrays.zp is None else partial(_same, arrays.zp)
        s2 = None if arrays.s2 is None else partial(_same, arrays.s2)
        return cls(partial(_same, arrays.codes), partial(_same, arrays.s), zp, s2, shape, fmt)

    @classmethod
    def planned(cls, shape: tuple[int, int], fmt: WeightFormat) -> "StoredWeight":
        """A weight without values: its size is known all the same."""
        zero_points = isinstance(fmt, IntegerFormat) and fmt.use_zero_point
        over = isinstance(fmt, Nvfp4Format) or (isinstance(fmt, IntegerFormat) and fmt.scale_dtype == FLOAT8)
        s2 = _never if over else None
        return cls(_never, _never, _never if zero_points else None, s2, shape, fmt)

    @property
    def dtype(self) -> ir.DataType:
        """ONNX type of the codes: the narrowest that holds them."""
        if isinstance(self.fmt, IntegerFormat):
            return _INTEGERS[self.fmt.code_bits, self.fmt.use_zero_point]
        return ir.DataType.FLOAT4E2M1 if self.fmt.code_bits == 4 else ir.DataType.FLOAT8E4M3FN

    @property
    def scale_dtype(self) -> ir.DataType:
        """ONNX type of the scales; of MX formats that of the exponents' bytes."""
        if isinstance(self.fmt, IntegerFormat):
            return ir.DataType.from_numpy(np.dtype(self.fmt.scale_dtype))
        return ir.DataType.FLOAT8E4M3FN if isinstance(self.fmt, Nvfp4Format) else ir.DataType.UINT8

    @property
    def n_blocks(self) -> int:
        """Blocks a column."""
        return 1 if self.fmt.block_size == -1 else -(-self.shape[0] // self.fmt.block_size)

    @property
    def nbytes(self) -> int:
        """Bytes in the file: codes, scales and zero points."""
        parameters = self.n_blocks * self.shape[1]
        codes = -(-self.shape[0] * self.shape[1] * self.fmt.code_bits // 8)
        zero_points = 0 if self.zp is None else -(-parameters * self.fmt.code_bits // 8)
        return codes + parameters * int(self.scale_dtype.itemsize) + zero_points + (0 if self.s2 is None else 4)

    def with_float_type(self, dtype: ir.DataType, casts: bool = False) -> "StoredWeight":
        """The weight with scales in the type of the activations, where they are floats of such a type.

        With ``casts`` narrower scales stay as they are: the graph casts them.
        """
        fmt, name = self.fmt, dtype.numpy().name
        if not isinstance(fmt, IntegerFormat) or name == fmt.scale_dtype:
            return self
        if casts and self.scale_dtype.itemsize < dtype.itemsize:
            return self
        return replace(self, s=lambda: self.s().astype(dtype.numpy()), fmt=replace(fmt, scale_dtype=name))

    def unpacked(self) -> np.ndarray:
        """One code an element, [c_in, c_out]: int8, uint8 or float8; E2M1 codes in uint8."""
        codes = self.codes()
        if self.fmt.code_bits == 8:
            return codes
        nibbles = np.stack([codes & 15, codes >> 4], axis=1).ravel()[: self.shape[0] * self.shape[1]]
        if self.dtype == ir.DataType.INT4:
            nibbles = ((nibbles ^ 8).astype(np.int8) - 8).astype(np.int8)
        return nibbles.reshape(self.shape)

    def divide_columns(self, divisor: np.ndarray) -> "StoredWeight":
        """The weight with its columns divided by ``divisor`` [c_out]: the scales take it up, the codes stay."""
        return replace(self, s=partial(_divided, self.s, divisor))

    def can_divide_columns(self, divisor: np.ndarray) -> bool:
        """Whether the divided scales are exact enough: floats, and normal numbers of their type.

        float16 holds 6e-5 to 65504; float8 scales and powers of two take up no factor.
        """
        if not isinstance(self.fmt, IntegerFormat) or self.s2 is not None:
            return False
        s = _divided(self.s, divisor)
        return bool((np.isfinite(s) & (np.abs(s) >= ml_dtypes.finfo(s.dtype).tiny)).all())


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a `StoredWeight` reads, in memory."""

    codes: np.ndarray
    s: np.ndarray
    zp: np.ndarray | None = None
    s2: np.ndarray | None = None


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _never() -> np.ndarray:
    raise AssertionError("a planned weight has no values")


def _divided(s: Read, divisor: np.ndarray) -> np.ndarray:
    old = s()
    with np.errstate(over="ignore", under="ignore"):
        return (old.astype(np.float32) / divisor).astype(old.dtype)


def code_tensor(
    weight: StoredWeight, transposed: bool = False, lead: tuple[int, ...] = (), shape: tuple[int, ...] | None = None
) -> ir.TensorProtocol:
    """The codes as an ONNX tensor.

    Args:
        weight: The weight.
        transposed: They lie as [c_out, c_in], else as [c_in, c_out].
        lead: Dimensions of a stack; its codes lie as [*lead, c_in, c_out].
        shape: What the file says of the shape, where that is not the one of these.
    """
    if lead:
        count = int(np.prod(lead))
        shape = shape or (*lead, weight.shape[0], weight.shape[1] // count)
        return tensor(lambda: _packed(_apart(weight.unpacked(), count), weight), weight.dtype, shape)
    if not transposed:
        return tensor(weight.codes, weight.dtype, shape or weight.shape)

    return tensor(lambda: _packed(weight.unpacked().T, weight), weight.dtype, shape or weight.shape[::-1])


def scale_tensor(weight: StoredWeight, transposed: bool = False, lead: tuple[int, ...] = ()) -> ir.TensorProtocol:
    """The scales as an ONNX tensor: [n_blocks, c_out], turned, or [c_out] of a format with one block a column.

    Of a stack [*lead, n_blocks, c_out], whatever the format.
    """
    shape = parameter_shape(weight, transposed, lead)
    return tensor(lambda: _laid_out(weight.s(), weight, transposed, lead), weight.scale_dtype, shape)


def exponent_tensor(weight: StoredWeight, transposed: bool = False) -> ir.TensorProtocol:
    """The scales of an MX format as E8M0."""

    def make() -> np.ndarray:
        return _laid_out(weight.s(), weight, transposed).view(ml_dtypes.float8_e8m0fnu)

    return tensor(make, ir.DataType.FLOAT8E8M0, parameter_shape(weight, transposed))


def second_scale_tensor(weight: StoredWeight, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.TensorProtocol:
    """What float8 scales are over, [1]."""
    s2 = weight.s2
    assert s2 is not None
    return tensor(lambda: s2().reshape(1).astype(dtype.numpy()), dtype, (1,))


def zero_point_tensor(weight: StoredWeight, transposed: bool = False, lead: tuple[int, ...] = ()) -> ir.TensorProtocol:
    """The zero points in the codes' type, shaped as the scales."""
    zp = weight.zp
    assert zp is not None

    def make() -> np.ndarray:
        return _packed(_laid_out(zp(), weight, transposed, lead), weight)

    return tensor(make, weight.dtype, parameter_shape(weight, transposed, lead))


def parameter_shape(weight: StoredWeight, transposed: bool, lead: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The shape that scales and zero points have in the file."""
    if lead:
        return (*lead, weight.n_blocks, weight.shape[1] // int(np.prod(lead)))
    if weight.fmt.block_size == -1:
        return (weight.shape[1],)
    shape = (weight.n_blocks, weight.shape[1])
    return shape[::-1] if transposed else shape


def _apart(array: np.ndarray, count: int) -> np.ndarray:
    """Matrices that lie side by side, [rows, count * columns], as [count, rows, columns]."""
    return array.reshape(len(array), count, -1).transpose(1, 0, 2)


def _packed(codes: np.ndarray, weight: StoredWeight) -> np.ndarray:
    codes = np.ascontiguousarray(codes)
    return pack(codes) if weight.fmt.code_bits == 4 else codes


def _laid_out(parameters: np.ndarray, weight: StoredWeight, transposed: bool, lead: tuple[int, ...] = ()) -> np.ndarray:
    if lead:
        return _apart(parameters, int(np.prod(lead)))
    if weight.fmt.block_size == -1:
        return parameters.reshape(-1)
    return np.ascontiguousarray(parameters.T if transposed else parameters)


def tensor(make: Read, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.TensorProtocol:
    """An ONNX tensor that is made when a file is written; of a type of 4 bits from packed bytes."""

    def evaluate() -> ir.TensorProtocol:
        array = np.ascontiguousarray(make())
        if dtype.bitwidth == 4:
            return ir.PackedTensor(array.reshape(-1), dtype, shape=ir.Shape(shape))
        return ir.Tensor(array.reshape(shape), dtype=dtype)

    return ir.LazyTensor(evaluate, dtype, ir.Shape(shape))


def pack(codes: np.ndarray, bits: int = 4) -> np.ndarray:
    """Codes in bytes, the first in the lowest bits, over the flattened array; an unfinished byte ends with zeros."""
    each = 8 // bits
    flat = codes.ravel().astype(np.uint8) & (2**bits - 1)
    flat = np.append(flat, np.zeros(-flat.size % each, np.uint8)).reshape(-1, each)
    return np.bitwise_or.reduce(flat << (bits * np.arange(each, dtype=np.uint8)), axis=1)
