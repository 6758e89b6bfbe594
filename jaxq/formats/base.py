"""The interface of all weight formats: scales, codes under these scales, and candidates for a search of scales."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from jaxq.errors import JaxqError
from jaxq.numerics import checks
from jaxq.numerics.blocks import spread
from jaxq.numerics.jit import Check, jit

ClipRatio = float | Float[Array, ""] | Float[Array, "n_blocks c_out"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scales:
    """Scales of a weight's blocks, in the types that files store.

    Attributes:
        s: Scale of each block, [n_blocks, c_out]: a float; float8 E4M3, to be multiplied by ``s2``; or uint8, the
            biased exponent (E8M0) of the MX formats.
        zp: Zero point of each block, [n_blocks, c_out], uint8; None for symmetric codes.
        s2: Scale of the whole weight, float32; None for formats without one.
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
        """The scales and zero points, without the codes."""
        return Scales(self.s, self.zp, self.s2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grid:
    """The values that each weight of a matrix can be rounded to, for solvers that go row by row.

    Attributes:
        step: Value of the code 1, float32, not 0: of each weight [c_in, c_out], each block [n_blocks, c_out], or one
            row [c_out]. Negative where full-range scales are.
        zp: Zero points of that shape, float32; None for symmetric codes.
    """

    step: Float[Array, "*rows c_out"]
    zp: Float[Array, "*rows c_out"] | None = None


def check_format(name: str, value: Any) -> None:
    """Checks that a value is a format.

    Raises:
        JaxqError: it is a name, a class, ...

    Example:
        >>> check_format("fmt", "int4")
        Traceback (most recent call last):
        jaxq.errors.JaxqError: fmt is 'int4': give a format, such as jaxq.make_format('int4', block_size=32)
    """
    if not isinstance(value, BlockFormat):
        # NVFP4 and MX have their own block size.
        dtype = repr(value) if isinstance(value, str) else "'int4'"
        blocks = ", block_size=32" if "int" in dtype else ""
        raise JaxqError(f"{name} is {value!r}: give a format, such as jaxq.make_format({dtype}{blocks})")


def check_scales_object(name: str, value: Any) -> None:
    """Checks that a value is `Scales`.

    Raises:
        JaxqError: it is a tuple, as `jaxq.find_scales` returns, an array, ...
    """
    if not isinstance(value, Scales):
        raise JaxqError(
            f"{name} is {type(value).__name__}: give jaxq.Scales(s, zp), with what jaxq.find_scales returns, "
            "or take fmt.plain_scales(w)"
        )


def check_quantized(name: str, value: Any) -> None:
    """Checks that a value is `Quantized`.

    Raises:
        JaxqError: it is a tuple, as `jaxq.quant_tensor` returns, an array, ...
    """
    if not isinstance(value, Quantized):
        raise JaxqError(
            f"{name} is {type(value).__name__}: give jaxq.Quantized(q, s, zp), with what jaxq.quant_tensor returns, "
            "or take fmt.quantize(w)"
        )


WEIGHT_AND_RATIO: dict[str, Check] = {"w": checks.weight, "clip_ratio": checks.number}
WEIGHT_AND_SCALES: dict[str, Check] = {"w": checks.weight, "scales": check_scales_object}
QUANTIZED: dict[str, Check] = {"quantized": check_quantized}
"""Checks of the parameters of a format's methods; see `jaxq.numerics.jit`."""


class BlockFormat(ABC):
    """A format that quantizes a weight [c_in, c_out] in blocks of rows; hashable, so that it can be static under jit.

    Every format also has ``dtype`` (its name), ``code_bits`` (bits of a code in a file, 4 or 8), ``scale_dtype`` and
    ``of_weights`` (the format for weights of a given dtype).

    Attributes:
        block_size: Rows a block, or -1 for one block per column.
    """

    block_size: int

    @abstractmethod
    def plain_scales(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Scales:
        """Scales of ``w``, with the range of each block clipped to ``clip_ratio`` of its greatest magnitude."""

    @abstractmethod
    def candidates(self) -> np.ndarray:
        """Points for `candidate`, [candidates, ...], beside the scales of `plain_scales`; see `search_block_scales`."""

    @abstractmethod
    def candidate(self, w: Float[Array, "c_in c_out"], point: Float[Array, "..."]) -> Scales:
        """Scales of ``w`` at one of the points of `candidates`."""

    @abstractmethod
    def encode(self, w: Float[Array, "c_in c_out"], scales: Scales) -> Shaped[Array, "c_in c_out"]:
        """Codes of ``w`` under these scales, each the nearest."""

    @abstractmethod
    def rounding_range(self) -> tuple[float, float]:
        """Least and greatest code, not yet rounded, that is not clipped: half a step beyond the ends of the codes."""

    @abstractmethod
    def block_grid(self, scales: Scales) -> Grid:
        """The values that the weights of each block can be rounded to, [n_blocks, c_out]."""

    def grid(self, scales: Scales, c_in: int) -> Grid:
        """The values that the weights of each row can be rounded to, [c_in, c_out]."""
        return jax.tree.map(lambda x: spread(x, c_in, self.block_size), self.block_grid(scales))

    @abstractmethod
    def round_to(self, w: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
        """Weights rounded to the nearest values of a grid, which may be that of some of the rows only."""

    @abstractmethod
    def dequantize(self, quantized: Quantized) -> Float[Array, "c_in c_out"]:
        """The weights that codes and scales represent, in float32."""

    @jit(static_argnames="self", checks=WEIGHT_AND_RATIO)
    def quantize(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Quantized:
        """Codes and scales of ``w``: `plain_scales`, then `encode`."""
        return self.encoded(w, self.plain_scales(w, clip_ratio))

    @jit(static_argnames="self", checks=WEIGHT_AND_SCALES)
    def encoded(self, w: Float[Array, "c_in c_out"], scales: Scales) -> Quantized:
        """Codes of ``w`` under these scales, together with them."""
        return Quantized(self.encode(w, scales), scales.s, scales.zp, scales.s2)

    def round_trip(self, w: Float[Array, "c_in c_out"], clip_ratio: ClipRatio = 1.0) -> Float[Array, "c_in c_out"]:
        """``w`` quantized and dequantized, float32.

        `jax.grad` through rounding is zero: what is left is the gradient of the scales. `jaxq.fake_quant` has a
        straight-through gradient.
        """
        return self.dequantize(self.quantize(w, clip_ratio))
