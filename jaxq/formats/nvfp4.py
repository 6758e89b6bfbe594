"""NVFP4 as a weight format; see `jaxq.numerics.float4`."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxq.formats.base import BlockFormat, ClipRatio, Grid, Quantized, Scales
from jaxq.numerics.blocks import spread
from jaxq.numerics.float4 import (
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
    scale_dtype = "float8_e4m3fn"

    def of_weights(self, dtype: str) -> "Nvfp4Format":
        """Itself: its scales have types of their own."""
        del dtype
        return self

    @jit(static_argnames="self")
    def find_scales(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Scales:
        """Scales of ``w``, the range of each block cut to ``clip_ratio`` of its greatest weight."""
        s2 = tensor_scale(w)
        return Scales(round_e4m3(block_ratios(w, s2, clip_ratio=clip_ratio)), s2=s2)

    def candidates(self) -> np.ndarray:
        """Steps up and down the numbers of E4M3, eight of them a factor of two.

        Four up is the scale at which a block's greatest weight lies at 4 instead of 6 ("4/6").
        """
        return np.array([step for step in range(-6, 8) if step], np.int32)

    @jit(static_argnames="self")
    def candidate(self, w: Float[Array, "c_in c_out"], point: Shaped[Array, ""]) -> Scales:
        """Scales of ``w`` at a point of `candidates`."""
        plain = self.find_scales(w)
        return Scales(shift_e4m3(plain.s, point), s2=plain.s2)

    @jit(static_argnames="self")
    def encode(self, w: Float[Array, "c_in c_out"], scales: Scales) -> Shaped[Array, "c_in c_out"]:
        """The nearest codes under these scales."""
        assert scales.s2 is not None
        return encode_e2m1(divide_by_scales(w, scales.s.astype(jnp.float32), scales.s2))

    def block_grid(self, scales: Scales) -> Grid:
        """What the weights of each block can be rounded to."""
        return Grid(self._steps(scales))

    def round_to(self, w: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
        """The nearest values of a grid; it may hold some of the rows alone."""
        return decode_e2m1(encode_e2m1(w / grid.step)) * grid.step

    @jit(static_argnames="self")
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """Weights that the codes stand for, in float32: ``E2M1(q) * (s * s2)``."""
        s = divide(self._steps(quantized.scales), 1)  # else XLA scales anew for every weight
        return decode_e2m1(quantized.q) * spread(s, quantized.q.shape[0], NVFP4_BLOCK)

    def _steps(self, scales: Scales) -> Float[Array, "n_blocks c_out"]:
        assert scales.s2 is not None
        return scales.s.astype(jnp.float32) * scales.s2
