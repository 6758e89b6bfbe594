"""NVFP4 as a weight format; see `jaxq.numerics.float4`."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

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
from jaxq.numerics.blocks import spread
from jaxq.numerics.float4 import (
    E2M1_CLIP,
    NVFP4_BLOCK,
    block_ratios,
    decode_e2m1,
    divide_by_scales,
    encode_e2m1,
    round_e4m3,
    shift_e4m3,
    tensor_scale,
)
from jaxq.numerics.integer import divide
from jaxq.numerics.jit import jit


@dataclass(frozen=True)
class Nvfp4Format(BlockFormat):
    """NVFP4: E2M1 codes, an E4M3 scale for each block of 16, a float32 scale for the weight.

    All columns of the weight share its scale. Siblings side by side therefore have one, which runtimes need that
    compute the siblings as one product.

    Example:
        >>> fmt = Nvfp4Format()
        >>> fmt.round_trip(jnp.array([[6.0], [-3.0], [0.9]])).ravel().tolist()
        [6.0, -3.0, 1.0]
    """

    dtype = "nvfp4"
    code_bits = 4
    block_size = NVFP4_BLOCK
    scale_dtype = "float8_e4m3fn"

    def of_weights(self, dtype: str) -> "Nvfp4Format":
        """The format itself: the dtypes of its scales are fixed."""
        del dtype
        return self

    @jit(static_argnames="self", checks=WEIGHT_AND_RATIO)
    def plain_scales(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Scales:
        """Scales of ``w``, with the range of each block clipped to ``clip_ratio`` of its greatest magnitude."""
        s2 = tensor_scale(w)
        return Scales(round_e4m3(block_ratios(w, s2, clip_ratio=clip_ratio)), s2=s2)

    def candidates(self) -> np.ndarray:
        """Steps between neighbours of E4M3 by which plain scales are moved; eight steps are a factor of two.

        Four steps up, the greatest weight of a block is rounded to 4 instead of 6 ("4/6").
        """
        return np.array([step for step in range(-6, 8) if step], np.int32)

    @jit(static_argnames="self")
    def candidate(self, w: Float[Array, "c_in c_out"], point: Shaped[Array, ""]) -> Scales:
        """Scales of ``w`` at one of the points of `candidates`."""
        plain = self.plain_scales(w)
        return Scales(shift_e4m3(plain.s, point), s2=plain.s2)

    @jit(static_argnames="self", checks=WEIGHT_AND_SCALES)
    def encode(self, w: Float[Array, "c_in c_out"], scales: Scales) -> Shaped[Array, "c_in c_out"]:
        """Codes of ``w`` under these scales, each the nearest."""
        assert scales.s2 is not None
        return encode_e2m1(divide_by_scales(w, scales.s.astype(jnp.float32), scales.s2))

    def rounding_range(self) -> tuple[float, float]:
        """Least and greatest code, not yet rounded, that is not clipped: -7 and 7, half a step beyond 6."""
        return -E2M1_CLIP, E2M1_CLIP

    def block_grid(self, scales: Scales) -> Grid:
        """The values that the weights of each block can be rounded to, [n_blocks, c_out]."""
        return Grid(self._steps(scales))

    def round_to(self, w: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
        """Weights rounded to the nearest values of a grid, which may be that of some of the rows only."""
        return decode_e2m1(encode_e2m1(w / grid.step)) * grid.step

    @jit(static_argnames="self", checks=QUANTIZED)
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """Weights that the codes stand for, in float32: ``E2M1(q) * (s * s2)``."""
        # Division by 1 keeps XLA from repeating the product of the scales for every weight of a block.
        s = divide(self._steps(quantized.scales), 1)
        return decode_e2m1(quantized.q) * spread(s, quantized.q.shape[0], NVFP4_BLOCK)

    def _steps(self, scales: Scales) -> Float[Array, "n_blocks c_out"]:
        """Value of the code 1.0 in each block."""
        assert scales.s2 is not None
        return scales.s.astype(jnp.float32) * scales.s2
