"""A quantized weight as files store it, and the ONNX tensors of its codes and scales."""

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
"""Returns an array, which it reads or computes anew at every call."""


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """Codes and scales of one weight, read only when a file is written: those of all weights may not fit into memory.

    Attributes:
        codes: [c_in, c_out] int8, uint8 or float8 for formats of 8 bits; else packed bytes, two codes each, row by row.
        s: Scales [n_blocks, c_out]: floats, float8 E4M3 (times ``s2``), or uint8 exponents (MX).
        zp: [n_blocks, c_out] uint8, or None.
        s2: The second scale, one for the weight, that multiplies float8 scales; or None.
        shape: [c_in, c_out]; the columns of all matrices of a stack are concatenated.
        fmt: The format of codes and scales.
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
        """A weight without values, whose size is known."""
        zero_points = isinstance(fmt, IntegerFormat) and fmt.use_zero_point
        has_second_scale = isinstance(fmt, Nvfp4Format) or (
            isinstance(fmt, IntegerFormat) and fmt.scale_dtype == FLOAT8
        )
        s2 = _never if has_second_scale else None
        return cls(_never, _never, _never if zero_points else None, s2, shape, fmt)

    @property
    def dtype(self) -> ir.DataType:
        """ONNX type of the codes: the narrowest that can store them."""
        if isinstance(self.fmt, IntegerFormat):
            return _INTEGERS[self.fmt.code_bits, self.fmt.use_zero_point]
        return ir.DataType.FLOAT4E2M1 if self.fmt.code_bits == 4 else ir.DataType.FLOAT8E4M3FN

    @property
    def scale_dtype(self) -> ir.DataType:
        """ONNX type of the scales; for MX formats, that of the exponents' bytes."""
        if isinstance(self.fmt, IntegerFormat):
            return ir.DataType.from_numpy(np.dtype(self.fmt.scale_dtype))
        return ir.DataType.FLOAT8E4M3FN if isinstance(self.fmt, Nvfp4Format) else ir.DataType.UINT8

    @property
    def n_blocks(self) -> int:
        """Number of blocks in a column."""
        return 1 if self.fmt.block_size == -1 else -(-self.shape[0] // self.fmt.block_size)

    @property
    def nbytes(self) -> int:
        """Bytes in the file: codes, scales and zero points."""
        parameters = self.n_blocks * self.shape[1]
        codes = -(-self.shape[0] * self.shape[1] * self.fmt.code_bits // 8)
        zero_points = 0 if self.zp is None else -(-parameters * self.fmt.code_bits // 8)
        return codes + parameters * int(self.scale_dtype.itemsize) + zero_points + (0 if self.s2 is None else 4)

    def with_float_type(self, dtype: ir.DataType, casts: bool = False) -> "StoredWeight":
        """The weight with integer formats' scales in the type of the activations.

        With ``casts``, narrower scales stay as they are: the graph casts them.
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
        """The weight with its columns divided by ``divisor`` [c_out]: scales change, codes do not."""
        return replace(self, s=partial(_divided, self.s, divisor))

    def can_divide_columns(self, divisor: np.ndarray) -> bool:
        """True if the divided scales are exact enough: floats, and normal numbers of their type.

        float16 has normal numbers from 6e-5 to 65504; float8 scales and powers of two cannot be divided exactly.
        """
        if not isinstance(self.fmt, IntegerFormat) or self.s2 is not None:
            return False
        s = _divided(self.s, divisor)
        return bool((np.isfinite(s) & (np.abs(s) >= ml_dtypes.finfo(s.dtype).tiny)).all())


@dataclass(frozen=True, eq=False)
class Arrays:
    """The arrays of a `StoredWeight`, in memory."""

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
        transposed: The codes are written as [c_out, c_in], else as [c_in, c_out].
        lead: Leading dimensions of a stack, whose codes are written as [*lead, c_in, c_out].
        shape: Another shape of the tensor, with the same elements in the same order.
    """
    if lead:
        count = int(np.prod(lead))
        shape = shape or (*lead, weight.shape[0], weight.shape[1] // count)
        return tensor(lambda: _packed(_split_matrices(weight.unpacked(), count), weight), weight.dtype, shape)
    if not transposed:
        return tensor(weight.codes, weight.dtype, shape or weight.shape)

    return tensor(lambda: _packed(weight.unpacked().T, weight), weight.dtype, shape or weight.shape[::-1])


def scale_tensor(weight: StoredWeight, transposed: bool = False, lead: tuple[int, ...] = ()) -> ir.TensorProtocol:
    """The scales as an ONNX tensor [n_blocks, c_out] or transposed, [c_out] where a column is one block.

    Those of a stack are [*lead, n_blocks, c_out] in every format.
    """
    shape = parameter_shape(weight, transposed, lead)
    return tensor(lambda: _laid_out(weight.s(), weight, transposed, lead), weight.scale_dtype, shape)


def exponent_tensor(weight: StoredWeight, transposed: bool = False) -> ir.TensorProtocol:
    """The scales of an MX format as E8M0."""

    def make() -> np.ndarray:
        return _laid_out(weight.s(), weight, transposed).view(ml_dtypes.float8_e8m0fnu)

    return tensor(make, ir.DataType.FLOAT8E8M0, parameter_shape(weight, transposed))


def second_scale_tensor(weight: StoredWeight, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.TensorProtocol:
    """The second scale [1], which multiplies float8 scales."""
    s2 = weight.s2
    assert s2 is not None
    return tensor(lambda: s2().reshape(1).astype(dtype.numpy()), dtype, (1,))


def zero_point_tensor(weight: StoredWeight, transposed: bool = False, lead: tuple[int, ...] = ()) -> ir.TensorProtocol:
    """The zero points in the type of the codes and the shape of the scales."""
    zp = weight.zp
    assert zp is not None

    def make() -> np.ndarray:
        return _packed(_laid_out(zp(), weight, transposed, lead), weight)

    return tensor(make, weight.dtype, parameter_shape(weight, transposed, lead))


def parameter_shape(weight: StoredWeight, transposed: bool, lead: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The shape of scales and zero points in the file."""
    if lead:
        return (*lead, weight.n_blocks, weight.shape[1] // int(np.prod(lead)))
    if weight.fmt.block_size == -1:
        return (weight.shape[1],)
    shape = (weight.n_blocks, weight.shape[1])
    return shape[::-1] if transposed else shape


def _split_matrices(array: np.ndarray, count: int) -> np.ndarray:
    """The matrices [count, rows, columns] of an array [rows, count * columns]."""
    return array.reshape(len(array), count, -1).transpose(1, 0, 2)


def _packed(codes: np.ndarray, weight: StoredWeight) -> np.ndarray:
    codes = np.ascontiguousarray(codes)
    return pack(codes) if weight.fmt.code_bits == 4 else codes


def _laid_out(parameters: np.ndarray, weight: StoredWeight, transposed: bool, lead: tuple[int, ...] = ()) -> np.ndarray:
    if lead:
        return _split_matrices(parameters, int(np.prod(lead)))
    if weight.fmt.block_size == -1:
        return parameters.reshape(-1)
    return np.ascontiguousarray(parameters.T if transposed else parameters)


def tensor(make: Read, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.TensorProtocol:
    """An ONNX tensor that is computed when a file is written; types of 4 bits take packed bytes."""

    def evaluate() -> ir.TensorProtocol:
        array = np.ascontiguousarray(make())
        if dtype.bitwidth == 4:
            return ir.PackedTensor(array.reshape(-1), dtype, shape=ir.Shape(shape))
        return ir.Tensor(array.reshape(shape), dtype=dtype)

    return ir.LazyTensor(evaluate, dtype, ir.Shape(shape))


def pack(codes: np.ndarray, bits: int = 4) -> np.ndarray:
    """The flattened codes packed in bytes, the first in the lowest bits; the last byte is filled up with zeros."""
    codes_per_byte = 8 // bits
    flat = codes.ravel().astype(np.uint8) & (2**bits - 1)
    flat = np.append(flat, np.zeros(-flat.size % codes_per_byte, np.uint8)).reshape(-1, codes_per_byte)
    return np.bitwise_or.reduce(flat << (bits * np.arange(codes_per_byte, dtype=np.uint8)), axis=1)
