"""Integers of 2 to 8 bits as a weight format; see `jaxq.numerics.integer`."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxq.formats.base import (
    QUANTIZED,
    WEIGHT_AND_RATIO,
    WEIGHT_AND_SCALES,
    BlockFormat,
    ClipRatio,
    Grid,
    Quantized,
    Scales,
)
from jaxq.numerics import checks
from jaxq.numerics.blocks import split
from jaxq.numerics.float4 import E4M3_MAX, round_e4m3, shift_e4m3
from jaxq.numerics.integer import code_range, divide, dq_tensor, find_full_range_scales, find_scales, rtn
from jaxq.numerics.jit import jit
from jaxq.numerics.mx import power_of_two, shared_exponent

FLOAT8 = "float8_e4m3fn"
"""The narrowest type of scales."""

_MARGIN = 1.25
"""Headroom for candidates above the plain scales: those go up to a factor of 1.2."""

_EXPONENTS = (-24, 118)
"""Bounds for the exponent of a weight's scale: float16 stores 2^-24, and 448 * 2^118 is finite in float32."""

_ENDS = (1.06, 1.0, 0.93, 0.86, 0.79, 0.72, 0.65)
"""Candidate factors for each end of a block's range, in formats with a zero point."""


@dataclass(frozen=True)
class IntegerFormat(BlockFormat):
    """Integers of 2 to 8 bits.

    Attributes:
        block_size: Rows a block, or -1 for one block per column.
        num_bits: 2 to 8.
        use_zero_point: Unsigned codes with a zero point per block.
        full_range: Symmetric scales that use the least code too, and may be negative; see `find_full_range_scales`.
        scale_dtype: Type that scales are stored in: the weights' type or a narrower one. Scales in `FLOAT8` are
            multiplied by a scale of the whole weight, a power of two, so that the products are exact.
    """

    block_size: int = 128
    num_bits: int = 4
    use_zero_point: bool = False
    full_range: bool = False
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        checks.whole_number("block_size", self.block_size)
        checks.whole_number("num_bits", self.num_bits)

    @property
    def dtype(self) -> str:
        """Name of the format, such as "int4"; "uint4" with a zero point."""
        return f"{'u' if self.use_zero_point else ''}int{self.num_bits}"

    @property
    def code_bits(self) -> int:
        """Bits of a code in a file: 4 for formats of up to 4 bits, else 8."""
        return 4 if self.num_bits <= 4 else 8

    def of_weights(self, dtype: str) -> "IntegerFormat":
        """The format for weights of this dtype: scales are stored in it too, unless ``scale_dtype`` is narrower."""
        narrower = np.dtype(self.scale_dtype).itemsize < np.dtype(dtype).itemsize
        return self if narrower else replace(self, scale_dtype=dtype)

    @jit(static_argnames="self", checks=WEIGHT_AND_RATIO)
    def plain_scales(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Scales:
        """Scales of ``w``, with the range of each block clipped to ``clip_ratio`` of its greatest magnitude."""
        w = w.astype(jnp.float32)
        if self.full_range and not self.use_zero_point:
            return self._stored(find_full_range_scales(w, self.block_size, 0, clip_ratio, self.num_bits), w)
        s, zp = find_scales(w, self.block_size, 0, clip_ratio, self.use_zero_point, self.num_bits)
        return self._stored(s, w, zp)

    def candidates(self) -> np.ndarray:
        """Points for `candidate`, [candidates, 2].

        A factor of the block's range, of both signs for full-range scales, and 0. For scales in float8: the sign, and a
        number of steps between neighbours of E4M3. For formats with a zero point: factors of the least and of the
        greatest weight.

        The more bits, the narrower the range of factors: a smaller step gains less, and a clipped weight loses as much.
        """
        if self.use_zero_point:
            return np.array([(lo, hi) for lo in _ENDS for hi in _ENDS], np.float32)
        min_ratio = {2: 0.3, 3: 0.45, 4: 0.6}.get(self.num_bits, 0.8)
        ratios = np.linspace(min_ratio, 1.2, 25)
        signs = (1, -1) if self.full_range else (1,)
        if self.scale_dtype == FLOAT8:
            shifts = range(round(8 * np.log2(min_ratio)), 4)
            return np.array([(sign, shift) for shift in shifts for sign in signs], np.float32)
        return np.array([(sign * ratio, 0) for ratio in ratios for sign in signs], np.float32)

    @jit(static_argnames="self")
    def candidate(self, w: Float[Array, "c_in c_out"], point: Float[Array, "2"]) -> Scales:
        """Scales of ``w`` at one of the points of `candidates`."""
        blocks = split(w.astype(jnp.float32), self.block_size)
        lo, hi = jnp.min(blocks, axis=1), jnp.max(blocks, axis=1)
        q_min, q_max = code_range(self.num_bits, self.use_zero_point)
        # With a zero point each end of the range has a factor of its own; the range always includes zero.
        if self.use_zero_point:
            lo, hi = jnp.minimum(lo, 0) * point[0], jnp.maximum(hi, 0) * point[1]
            scales = self._stored((hi - lo) / q_max, w)
            zp = jnp.clip(jnp.round(-lo / _steps(scales)), 0, q_max)
            return Scales(scales.s, zp.astype(jnp.uint8), scales.s2)
        # The weight that gets the least code: with its sign for full-range scales, else negative.
        peak = jnp.where(hi >= -lo, hi, lo) if self.full_range else -jnp.maximum(hi, -lo)
        if self.scale_dtype == FLOAT8:
            plain = self._stored(peak * point[0] / q_min, w)
            return Scales(shift_e4m3(plain.s, point[1].astype(jnp.int32)), s2=plain.s2)
        return self._stored(peak * point[0] / q_min, w)

    def _stored(
        self, s: Float[Array, "n_blocks c_out"], w: Float[Array, "c_in c_out"], zp: Num[Array, "..."] | None = None
    ) -> Scales:
        """Scales in ``scale_dtype``; 1 where the type has no number so small."""
        if self.scale_dtype == FLOAT8:
            s2 = self._tensor_scale(w)
            return Scales(round_e4m3(s / s2), zp, s2)
        limit = float(jnp.finfo(self.scale_dtype).max)
        s = jnp.clip(s, -limit, limit).astype(self.scale_dtype)
        return Scales(jnp.where(s == 0, jnp.ones_like(s), s), zp)

    def _tensor_scale(self, w: Float[Array, "c_in c_out"]) -> Float[Array, ""]:
        """A power of two that brings all scales of ``w``, and all candidates for them, into the range of E4M3."""
        _, q_max = code_range(self.num_bits, unsigned=False)
        peak = jnp.maximum(jnp.max(w, initial=0), -jnp.min(w, initial=0))
        return power_of_two(jnp.clip(shared_exponent(peak * _MARGIN / q_max, E4M3_MAX), *_EXPONENTS))

    @jit(static_argnames="self", checks=WEIGHT_AND_SCALES)
    def encode(self, w: Float[Array, "c_in c_out"], scales: Scales) -> Num[Array, "c_in c_out"]:
        """Codes of ``w`` under these scales, each the nearest, ties to even."""
        return rtn(w.astype(jnp.float32), _steps(scales), self.block_size, 0, scales.zp, self.num_bits)

    def rounding_range(self) -> tuple[float, float]:
        """Least and greatest code, not yet rounded, that is not clipped: half a step beyond the ends of the codes."""
        q_min, q_max = code_range(self.num_bits, self.use_zero_point)
        return q_min - 0.5, q_max + 0.5

    def block_grid(self, scales: Scales) -> Grid:
        """The values that the weights of each block can be rounded to, [n_blocks, c_out]."""
        return Grid(_steps(scales), None if scales.zp is None else scales.zp.astype(jnp.float32))

    def round_to(self, w: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
        """Weights rounded to the nearest values of a grid, ties to even codes."""
        q_min, q_max = code_range(self.num_bits, self.use_zero_point)
        zp = 0 if grid.zp is None else grid.zp
        return (jnp.clip(jnp.round(w / grid.step) + zp, q_min, q_max) - zp) * grid.step

    @jit(static_argnames="self", checks=QUANTIZED)
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """The weights that codes and scales represent, in float32."""
        return dq_tensor(quantized.q, _steps(quantized.scales), self.block_size, 0, quantized.zp)


def _steps(scales: Scales) -> Float[Array, "n_blocks c_out"]:
    """Value of the code 1 in each block, float32."""
    s = scales.s.astype(jnp.float32)
    # Division by 1 keeps XLA from repeating the product for every weight of a block.
    return s if scales.s2 is None else divide(s * scales.s2, 1)
