"""How a weight is held: integers, NVFP4 or MX floats, behind one interface that the searches and the files use.

Every format has ``dtype`` (its name), ``block_size``, ``code_bits`` (bits of a code in a file, 4 or 8),
``with_scale_dtype``, ``quantize``, ``dequantize`` and ``round_trip``.
"""

import re
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from jaxq.blocks import max_magnitude, split, spread
from jaxq.errors import JaxqError
from jaxq.float4 import (
    E2M1_MAX,
    E4M3_MAX,
    NVFP4_BLOCK,
    block_ratios,
    decode_e2m1,
    divide_by_scales,
    encode_e2m1,
    round_e4m3,
    tensor_scale,
)
from jaxq.integer import code_range, divide, dq_tensor, find_full_range_scales, find_scales, rtn
from jaxq.mx import E8M0_BIAS, MX_BLOCK, scale_down, scale_up, shared_exponent

ClipRatio = float | Float[Array, ""] | Float[Array, "n_blocks c_out"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A quantized weight.

    Attributes:
        q: Codes [c_in, c_out]: int8 or uint8; E2M1 codes in uint8; or float8.
        s: Scales [n_blocks, c_out]: float; float8 E4M3 of NVFP4; or uint8, the biased exponents (E8M0) of MX.
        zp: Zero points [n_blocks, c_out] in uint8, or None.
        s2: NVFP4's scale of the whole weight, or None.
    """

    q: Shaped[Array, "c_in c_out"]
    s: Shaped[Array, "n_blocks c_out"]
    zp: Num[Array, "n_blocks c_out"] | None = None
    s2: Float[Array, ""] | None = None


@dataclass(frozen=True)
class IntegerFormat:
    """Integers of 2 to 8 bits; see `jaxq.integer`.

    Attributes:
        block_size: Rows a block, or -1 for one block per column.
        num_bits: 2 to 8.
        use_zero_point: Unsigned codes with a zero point per block.
        full_range: Symmetric scales that use the least code too, and may be negative; see `find_full_range_scales`.
        scale_dtype: Type that the scales are stored in: the activations' own, "float32" or "float16".
    """

    block_size: int = 128
    num_bits: int = 4
    use_zero_point: bool = False
    full_range: bool = False
    scale_dtype: str = "float32"

    @property
    def dtype(self) -> str:
        """ "int4", "uint3", ...: unsigned with a zero point."""
        return f"{'u' if self.use_zero_point else ''}int{self.num_bits}"

    @property
    def code_bits(self) -> int:
        """4 for up to 4 bits, else 8."""
        return 4 if self.num_bits <= 4 else 8

    def with_scale_dtype(self, dtype: str) -> "IntegerFormat":
        """The same with scales of this type."""
        return replace(self, scale_dtype=dtype)

    @partial(jax.jit, static_argnums=0)
    def quantize(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Quantized:
        """Codes and scales of ``w``, the range of each block cut to ``clip_ratio`` of its greatest weight."""
        w = w.astype(jnp.float32)
        if self.full_range and not self.use_zero_point:
            s, zp = find_full_range_scales(w, self.block_size, 0, clip_ratio, self.num_bits), None
        else:
            s, zp = find_scales(w, self.block_size, 0, clip_ratio, self.use_zero_point, self.num_bits)
        s = s.astype(self.scale_dtype)
        s = jnp.where(s == 0, jnp.ones_like(s), s)  # of weights too small for the type
        return Quantized(rtn(w, s, self.block_size, 0, zp, self.num_bits), s, zp)

    @partial(jax.jit, static_argnums=0)
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """Weights that the codes stand for, in float32."""
        return dq_tensor(quantized.q, quantized.s.astype(jnp.float32), self.block_size, 0, quantized.zp)

    def round_trip(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Float[Array, "c_in c_out"]:
        """What is left of ``w`` after quantization."""
        return self.dequantize(self.quantize(w, clip_ratio))


@dataclass(frozen=True)
class Nvfp4Format:
    """NVFP4: E2M1 codes, an E4M3 scale for each block of 16, a float32 scale for the weight; see `jaxq.float4`.

    The weight's scale is that of all columns given: siblings side by side share it, as runtimes that run them as one
    product need.

    Example:
        >>> fmt = Nvfp4Format()
        >>> fmt.round_trip(jnp.array([[6.0], [-3.0], [0.9]])).ravel().tolist()
        [6.0, -3.0, 1.0]
    """

    dtype = "nvfp4"
    code_bits = 4
    block_size = NVFP4_BLOCK

    def with_scale_dtype(self, dtype: str) -> "Nvfp4Format":
        """Itself: its scales have types of their own."""
        del dtype
        return self

    @partial(jax.jit, static_argnums=0)
    def quantize(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Quantized:
        """Codes and scales of ``w``, the range of each block cut to ``clip_ratio`` of its greatest weight."""
        s2 = tensor_scale(w)
        s = round_e4m3(block_ratios(w, s2, clip_ratio=clip_ratio))
        return Quantized(encode_e2m1(divide_by_scales(w, s.astype(jnp.float32), s2)), s, s2=s2)

    @partial(jax.jit, static_argnums=0)
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """Weights that the codes stand for, in float32: ``E2M1(q) * (s * s2)``."""
        assert quantized.s2 is not None
        s = divide(quantized.s.astype(jnp.float32) * quantized.s2, 1)  # else XLA scales anew for every weight
        return decode_e2m1(quantized.q) * spread(s, quantized.q.shape[0], NVFP4_BLOCK)

    def round_trip(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Float[Array, "c_in c_out"]:
        """What is left of ``w`` after quantization."""
        return self.dequantize(self.quantize(w, clip_ratio))


@dataclass(frozen=True)
class MxFormat:
    """MXFP8 (E4M3 codes) or MXFP4 (E2M1 codes), a power of two for each block of 32; see `jaxq.mx`.

    Attributes:
        dtype: "mxfp8" or "mxfp4".

    Example:
        >>> MxFormat("mxfp4").round_trip(jnp.array([[12.0], [-7.0], [1.0]])).ravel().tolist()
        [12.0, -8.0, 1.0]
    """

    dtype: str
    block_size = MX_BLOCK

    def __post_init__(self) -> None:
        if self.dtype not in ("mxfp8", "mxfp4"):
            raise JaxqError(f"dtype is {self.dtype!r}: the MX formats are mxfp8 and mxfp4")

    @property
    def code_bits(self) -> int:
        """8 or 4."""
        return 8 if self.dtype == "mxfp8" else 4

    def with_scale_dtype(self, dtype: str) -> "MxFormat":
        """Itself: its scales are powers of two."""
        del dtype
        return self

    @partial(jax.jit, static_argnums=0)
    def quantize(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Quantized:
        """Codes and exponents of ``w``, the range of each block cut to ``clip_ratio`` of its greatest weight."""
        top = E4M3_MAX if self.dtype == "mxfp8" else E2M1_MAX
        amax = max_magnitude(split(w.astype(jnp.float32), MX_BLOCK), 1)
        e = shared_exponent(amax * clip_ratio, top)
        x = jnp.clip(scale_down(w, e), -top, top)
        q = x.astype(jnp.float8_e4m3fn) if self.dtype == "mxfp8" else encode_e2m1(x)
        return Quantized(q, (e + E8M0_BIAS).astype(jnp.uint8))

    @partial(jax.jit, static_argnums=0)
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """Weights that the codes stand for, in float32."""
        q = quantized.q.astype(jnp.float32) if self.dtype == "mxfp8" else decode_e2m1(quantized.q)
        return scale_up(q, quantized.s.astype(jnp.int32) - E8M0_BIAS)

    def round_trip(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Float[Array, "c_in c_out"]:
        """What is left of ``w`` after quantization."""
        return self.dequantize(self.quantize(w, clip_ratio))


WeightFormat = IntegerFormat | Nvfp4Format | MxFormat
"""A format; hashable, so that jitted functions take it as static."""

DTYPES = (*(f"{u}int{b}" for u in ("", "u") for b in range(2, 9)), "nvfp4", "mxfp8", "mxfp4")
"""Names of all formats."""


def make_format(
    dtype: str, block_size: int | None = None, full_range: bool = False, option: str = "block_size"
) -> WeightFormat:
    """The format of that name.

    Args:
        dtype: One of `DTYPES`; "uint4" is 4 bits with a zero point.
        block_size: Rows a block, or -1; NVFP4 has 16 and the MX formats 32. None: these, and 32 for integers.
        full_range: See `IntegerFormat`.
        option: What the user calls the block size.

    Raises:
        JaxqError: there is no such format, or it has another block size.

    Example:
        >>> make_format("uint4", 32)
        IntegerFormat(block_size=32, num_bits=4, use_zero_point=True, full_range=False, scale_dtype='float32')
    """
    if match := re.fullmatch(r"(u?)int([2-8])", dtype):
        fmt = IntegerFormat(
            32 if block_size is None else block_size, int(match[2]), bool(match[1]), full_range and not match[1]
        )
        code_range(fmt.num_bits, fmt.use_zero_point)
        return fmt
    if dtype == "nvfp4":
        fmt = Nvfp4Format()
    elif dtype in ("mxfp8", "mxfp4"):
        fmt = MxFormat(dtype)
    else:
        raise JaxqError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    if block_size not in (None, fmt.block_size):
        raise JaxqError(f"{option} is {block_size}: {dtype} has blocks of {fmt.block_size}; leave {option} out")
    return fmt
