"""Rounding with a gradient, for training with quantized weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxq.formats.base import ClipRatio, Scales, check_format, check_scales_object
from jaxq.formats.registry import WeightFormat
from jaxq.numerics import checks
from jaxq.numerics.integer import check_scales, divide
from jaxq.numerics.jit import jit


def _optional_scales(name: str, value: object) -> None:
    if value is not None:
        check_scales_object(name, value)


@jit(
    static_argnames="fmt",
    checks={"w": checks.weight, "fmt": check_format, "scales": _optional_scales, "clip_ratio": checks.number},
)
def fake_quant(
    w: Float[Array, "c_in c_out"], fmt: WeightFormat, scales: Scales | None = None, clip_ratio: ClipRatio = 1.0
) -> Float[Array, "c_in c_out"]:
    """``w`` quantized and dequantized, with the gradient of clipping in place of that of rounding (straight-through).

    The gradient of rounding itself is zero almost everywhere. Here ``dL/dw = dL/dw'`` where ``w`` is rounded, and 0
    where it is clipped. With the step ``s`` and the zero point ``zp`` of its block, a weight is rounded where
    ``lo <= w / s + zp <= hi``. ``lo`` and ``hi`` are half a step beyond the ends of the codes: ``-2^(b-1) - 1/2`` and
    ``2^(b-1) - 1/2`` for signed integers of ``b`` bits, ``-1/2`` and ``2^b - 1/2`` for unsigned ones, -7 and 7 for E2M1
    (NVFP4, MXFP4), -464 and 464 for E4M3 (MXFP8). The greatest weight of a block, which the plain scale comes from, is
    rounded. So the gradient is exactly that of ``s * (clip(w / s + zp, lo, hi) - zp)``, with ``s`` and ``zp`` held
    fixed: scales have no gradient, those computed from ``w`` included.

    Args:
        w: Weight.
        fmt: The format; static under jit.
        scales: Scales of the blocks; None for `fmt.plain_scales(w, clip_ratio)`, computed anew in each call.
        clip_ratio: Clip ratio of plain scales; not used with ``scales``.

    Returns:
        Values of the format in float32, equal to `fmt.round_trip(w, clip_ratio)` without ``scales``.

    Raises:
        JaxqError: ``fmt`` or ``scales`` is of another kind, the scales' shape does not fit, or ``w`` is not finite.

    Source: the straight-through estimator of Bengio, Leonard and Courville, "Estimating or Propagating Gradients
        Through Stochastic Neurons" (arXiv:1308.3432); with clipping as in Jacob et al., "Quantization and Training of
        Neural Networks for Efficient Integer-Arithmetic-Only Inference" (arXiv:1712.05877).

    Example:
        >>> from jaxq.formats import IntegerFormat
        >>> w = jnp.array([[7.0], [2.4], [-9.0]])
        >>> fmt, scales = IntegerFormat(block_size=4), Scales(jnp.array([[1.0]]))
        >>> fake_quant(w, fmt, scales).ravel().tolist()
        [7.0, 2.0, -8.0]
        >>> jax.grad(lambda w: fake_quant(w, fmt, scales).sum())(w).ravel().tolist()
        [1.0, 1.0, 0.0]
    """
    if scales is None:
        scales = fmt.plain_scales(w, clip_ratio)
    check_scales(w.shape, scales.s.shape, fmt.block_size, 0)
    scales = jax.lax.stop_gradient(scales)
    fixed = jax.lax.stop_gradient(w)
    values = fmt.dequantize(fmt.encoded(fixed, scales))

    grid, (lo, hi) = fmt.grid(scales, w.shape[0]), fmt.rounding_range()
    codes = divide(fixed.astype(jnp.float32), grid.step) + (0 if grid.zp is None else grid.zp)
    return _straight_through(w.astype(jnp.float32), values, (codes >= lo) & (codes <= hi))


@jax.custom_jvp
def _straight_through(w: Float[Array, "..."], values: Float[Array, "..."], rounded: Bool[Array, "..."]) -> Array:
    """``values``; the derivative with respect to ``w`` is 1 where ``w`` is rounded, and 0 elsewhere."""
    del w, rounded
    return values


@_straight_through.defjvp
def _straight_through_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    w, values, rounded = primals
    return _straight_through(w, values, rounded), jnp.where(rounded, tangents[0], 0)
