"""What every format of weights has: scales, codes with them, and points that a search of scales looks at."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from jaxq.numerics.blocks import spread
from jaxq.numerics.jit import jit

ClipRatio = float | Float[Array, ""] | Float[Array, "n_blocks c_out"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scales:
    """Scales of a weight's blocks, in the types that files hold.

    Attributes:
        s: [n_blocks, c_out]: float; float8 E4M3, over ``s2``; or uint8, the biased exponents (E8M0) of MX.
        zp: Zero points [n_blocks, c_out] in uint8, or None.
        s2: Scale of the whole weight, or None.
    """

    s: Shaped[Array, "n_blocks c_out"]
    zp: Num[Array, "n_blocks c_out"] | None = None
    s2: Float[Array, ""] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A quantized weight.

    Attributes:
        q: Codes [c_in, c_out]: int8 or uint8; E2M1 codes in uint8; or float8.
        s, zp, s2: See `Scales`.
    """

    q: Shaped[Array, "c_in c_out"]
    s: Shaped[Array, "n_blocks c_out"]
    zp: Num[Array, "n_blocks c_out"] | None = None
    s2: Float[Array, ""] | None = None

    @property
    def scales(self) -> Scales:
        """All but the codes."""
        return Scales(self.s, self.zp, self.s2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grid:
    """The values that each weight of a matrix can take, for solvers that go row by row.

    Attributes:
        step: Size of a code [c_in, c_out], or of one row [c_out], float32, not 0; negative where codes are mirrored.
        zp: Zero points of that shape, float32, or None.
    """

    step: Float[Array, "*rows c_out"]
    zp: Float[Array, "*rows c_out"] | None = None


class BlockFormat(ABC):
    """A way to hold a weight [c_in, c_out] in blocks of rows; hashable, so that jitted functions take it as static.

    Every format also has ``dtype`` (its name), ``block_size``, ``code_bits`` (bits of a code in a file, 4 or 8) and
    ``of_weights``.
    """

    block_size: int

    @abstractmethod
    def find_scales(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Scales:
        """Scales of ``w``, the range of each block cut to ``clip_ratio`` of its greatest weight."""

    @abstractmethod
    def candidates(self) -> np.ndarray:
        """Points for `candidate` [candidates, ...], other than what `find_scales` gives; for `search_block_scales`."""

    @abstractmethod
    def candidate(self, w: Float[Array, "c_in c_out"], point: Float[Array, "..."]) -> Scales:
        """Scales of ``w`` at a point of `candidates`."""

    @abstractmethod
    def encode(self, w: Float[Array, "c_in c_out"], scales: Scales) -> Shaped[Array, "c_in c_out"]:
        """The nearest codes under these scales."""

    @abstractmethod
    def block_grid(self, scales: Scales) -> Grid:
        """What the weights of each block can be rounded to, [n_blocks, c_out]."""

    def grid(self, scales: Scales, c_in: int) -> Grid:
        """What each of ``c_in`` rows can be rounded to."""
        return jax.tree.map(lambda x: spread(x, c_in, self.block_size), self.block_grid(scales))

    @abstractmethod
    def round_to(self, w: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
        """The nearest values of a grid; it may hold some of the rows alone."""

    @abstractmethod
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """Weights that the codes stand for, in float32."""

    @jit(static_argnames="self")
    def quantize(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Quantized:
        """Codes and scales of ``w``: `find_scales`, then `encode`."""
        return self.encoded(w, self.find_scales(w, clip_ratio))

    @jit(static_argnames="self")
    def encoded(self, w: Float[Array, "c_in c_out"], scales: Scales) -> Quantized:
        """Codes of ``w`` with the scales that they go with."""
        return Quantized(self.encode(w, scales), scales.s, scales.zp, scales.s2)

    def round_trip(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Float[Array, "c_in c_out"]:
        """What is left of ``w`` after quantization."""
        return self.dequantize(self.quantize(w, clip_ratio))
