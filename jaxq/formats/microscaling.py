"""The MX formats as weight formats; see `jaxq.numerics.mx`."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxq.errors import JaxqError
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
from jaxq.numerics.blocks import max_magnitude, split
from jaxq.numerics.float4 import E2M1_CLIP, E2M1_MAX, E4M3_CLIP, E4M3_MAX, decode_e2m1, encode_e2m1
from jaxq.numerics.jit import jit
from jaxq.numerics.mx import E8M0_BIAS, MX_BLOCK, power_of_two, scale_down, scale_up, shared_exponent

_MIN_NORMAL_EXPONENT = -126  # of float32


@dataclass(frozen=True)
class MxFormat(BlockFormat):
    """MXFP8 (E4M3 codes) or MXFP4 (E2M1 codes), with a power of two as the scale of each block of 32.

    Attributes:
        dtype: "mxfp8" or "mxfp4".

    Example:
        >>> MxFormat("mxfp4").round_trip(jnp.array([[12.0], [-7.0], [1.0]])).ravel().tolist()
        [12.0, -8.0, 1.0]
    """

    dtype: str
    block_size = MX_BLOCK
    scale_dtype = "float8_e8m0fnu"

    def __post_init__(self) -> None:
        if self.dtype not in ("mxfp8", "mxfp4"):
            raise JaxqError(f"dtype is {self.dtype!r}: the MX formats are mxfp8 and mxfp4")

    @property
    def code_bits(self) -> int:
        """Bits of a code in a file: 8 for MXFP8, 4 for MXFP4."""
        return 8 if self.dtype == "mxfp8" else 4

    @property
    def _element_max(self) -> float:
        """Greatest number of the codes' type."""
        return E4M3_MAX if self.dtype == "mxfp8" else E2M1_MAX

    def of_weights(self, dtype: str) -> "MxFormat":
        """The format itself: its scales are powers of two for weights of any dtype."""
        del dtype
        return self

    @jit(static_argnames="self", checks=WEIGHT_AND_RATIO)
    def plain_scales(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Scales:
        """Scales of ``w``, with the range of each block clipped to ``clip_ratio`` of its greatest magnitude."""
        amax = max_magnitude(split(w.astype(jnp.float32), MX_BLOCK), 1)
        return self._stored(shared_exponent(amax * clip_ratio, self._element_max))

    def candidates(self) -> np.ndarray:
        """Numbers to add to the exponents of plain scales."""
        return np.array([-1, -2, 1], np.int32)

    @jit(static_argnames="self")
    def candidate(self, w: Float[Array, "c_in c_out"], point: Shaped[Array, ""]) -> Scales:
        """Scales of ``w`` at one of the points of `candidates`."""
        return self._stored(jnp.clip(self._exponents(self.plain_scales(w)) + point, -E8M0_BIAS, E8M0_BIAS))

    @jit(static_argnames="self", checks=WEIGHT_AND_SCALES)
    def encode(self, w: Float[Array, "c_in c_out"], scales: Scales) -> Shaped[Array, "c_in c_out"]:
        """Codes of ``w`` under these scales, each the nearest."""
        x = jnp.clip(scale_down(w, self._exponents(scales)), -self._element_max, self._element_max)
        return x.astype(jnp.float8_e4m3fn) if self.dtype == "mxfp8" else encode_e2m1(x)

    def rounding_range(self) -> tuple[float, float]:
        """Least and greatest code, not yet rounded, that is not clipped: half a step beyond 6, or beyond 448."""
        end = E4M3_CLIP if self.dtype == "mxfp8" else E2M1_CLIP
        return -end, end

    def block_grid(self, scales: Scales) -> Grid:
        """The values that the weights of each block can be rounded to, [n_blocks, c_out]."""
        return Grid(power_of_two(jnp.maximum(self._exponents(scales), _MIN_NORMAL_EXPONENT)))

    def round_to(self, w: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
        """Weights rounded to the nearest values of a grid, which may be that of some of the rows only."""
        x = jnp.clip(w / grid.step, -self._element_max, self._element_max)
        if self.dtype == "mxfp8":
            return x.astype(jnp.float8_e4m3fn).astype(jnp.float32) * grid.step
        return decode_e2m1(encode_e2m1(x)) * grid.step

    @jit(static_argnames="self", checks=QUANTIZED)
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """The weights that codes and scales represent, in float32."""
        q = quantized.q.astype(jnp.float32) if self.dtype == "mxfp8" else decode_e2m1(quantized.q)
        return scale_up(q, self._exponents(quantized.scales))

    def _exponents(self, scales: Scales) -> Shaped[Array, "n_blocks c_out"]:
        return scales.s.astype(jnp.int32) - E8M0_BIAS

    def _stored(self, e: Shaped[Array, "n_blocks c_out"]) -> Scales:
        return Scales((e + E8M0_BIAS).astype(jnp.uint8))
