"""A quantized weight as files hold it, and the tensors that hold it."""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from jaxq.formats import IntegerFormat, WeightFormat

_INTEGERS = {
    (4, False): ir.DataType.INT4,
    (4, True): ir.DataType.UINT4,
    (8, False): ir.DataType.INT8,
    (8, True): ir.DataType.UINT8,
}


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """Codes and scales of one weight in numpy.

    Attributes:
        codes: [c_in, c_out] int8, uint8 or float8 for formats of 8 bits; else packed bytes, two codes each, row by row.
        s: Scales [n_blocks, c_out]: in the activations' type, float8 E4M3 (NVFP4), or uint8 exponents (MX).
        zp: [n_blocks, c_out] uint8, or None.
        s2: NVFP4's scale of the weight, or None.
        shape: [c_in, c_out].
        fmt: How the codes were made.
    """

    codes: np.ndarray
    s: np.ndarray
    zp: np.ndarray | None
    s2: np.ndarray | None
    shape: tuple[int, int]
    fmt: WeightFormat

    @property
    def dtype(self) -> ir.DataType:
        """ONNX type of the codes: the narrowest that holds them."""
        if isinstance(self.fmt, IntegerFormat):
            return _INTEGERS[self.fmt.code_bits, self.fmt.use_zero_point]
        return ir.DataType.FLOAT4E2M1 if self.fmt.code_bits == 4 else ir.DataType.FLOAT8E4M3FN

    @property
    def nbytes(self) -> int:
        """Bytes in the file: codes, scales and zero points."""
        zero_points = 0 if self.zp is None else -(-self.zp.size * self.fmt.code_bits // 8)
        return self.codes.nbytes + self.s.nbytes + zero_points + (0 if self.s2 is None else self.s2.nbytes)

    def unpacked(self) -> np.ndarray:
        """One code an element, [c_in, c_out]: int8, uint8 or float8; E2M1 codes in uint8."""
        if self.fmt.code_bits == 8:
            return self.codes
        nibbles = np.stack([self.codes & 15, self.codes >> 4], axis=1).ravel()[: self.shape[0] * self.shape[1]]
        if self.dtype == ir.DataType.INT4:
            nibbles = ((nibbles ^ 8).astype(np.int8) - 8).astype(np.int8)
        return nibbles.reshape(self.shape)

    def divide_columns(self, divisor: np.ndarray) -> "StoredWeight":
        """The weight with its columns divided by ``divisor`` [c_out]: the scales take it up, the codes stay."""
        return replace(self, s=(self.s / divisor).astype(self.s.dtype))

    def can_divide_columns(self, divisor: np.ndarray) -> bool:
        """Whether the divided scales are exact enough: floats, and normal numbers of their type.

        float16 holds 6e-5 to 65504; float8 scales and powers of two take up no factor.
        """
        if not isinstance(self.fmt, IntegerFormat):
            return False
        s = self.divide_columns(divisor).s
        return bool((np.isfinite(s) & (np.abs(s) >= np.finfo(s.dtype).tiny)).all())


def code_tensor(weight: StoredWeight, turned: bool = False) -> ir.TensorProtocol:
    """The codes as an ONNX tensor [c_in, c_out], or [c_out, c_in] if ``turned``."""
    if not turned:
        return tensor(weight.codes, weight.dtype, weight.shape)
    codes = np.ascontiguousarray(weight.unpacked().T)
    return tensor(pack(codes) if weight.fmt.code_bits == 4 else codes, weight.dtype, codes.shape)


def scale_tensor(weight: StoredWeight, turned: bool = False) -> ir.TensorProtocol:
    """The scales as an ONNX tensor: [n_blocks, c_out], turned, or [c_out] of a format with one block a column."""
    return tensor(_laid_out(weight.s, weight, turned))


def exponent_tensor(weight: StoredWeight, turned: bool = False) -> ir.TensorProtocol:
    """The scales of an MX format as E8M0."""
    return tensor(_laid_out(weight.s, weight, turned).view(ml_dtypes.float8_e8m0fnu))


def zero_point_tensor(weight: StoredWeight, turned: bool = False) -> ir.TensorProtocol:
    """The zero points in the codes' type, shaped as the scales."""
    assert weight.zp is not None
    zp = _laid_out(weight.zp, weight, turned)
    return tensor(pack(zp) if weight.fmt.code_bits == 4 else zp, weight.dtype, zp.shape)


def _laid_out(parameters: np.ndarray, weight: StoredWeight, turned: bool) -> np.ndarray:
    if weight.fmt.block_size == -1:
        return parameters.reshape(-1)
    return np.ascontiguousarray(parameters.T if turned else parameters)


def tensor(
    array: np.ndarray, dtype: ir.DataType | None = None, shape: tuple[int, ...] | None = None
) -> ir.TensorProtocol:
    """An ONNX tensor; of a type of 4 bits from packed bytes and its shape."""
    if dtype is not None and shape is not None and dtype.bitwidth == 4:
        return ir.PackedTensor(array, dtype, shape=shape)
    return ir.Tensor(np.ascontiguousarray(array), dtype=dtype)


def pack(codes: np.ndarray, bits: int = 4) -> np.ndarray:
    """Codes in bytes, the first in the lowest bits, over the flattened array; an unfinished byte ends with zeros."""
    each = 8 // bits
    flat = codes.ravel().astype(np.uint8) & (2**bits - 1)
    flat = np.append(flat, np.zeros(-flat.size % each, np.uint8)).reshape(-1, each)
    return np.bitwise_or.reduce(flat << (bits * np.arange(each, dtype=np.uint8)), axis=1)
