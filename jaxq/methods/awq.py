"""AWQ: activation-aware scales and clip ratios, searched on second moments instead of tokens.

Source of the method: Lin et al., "AWQ: Activation-aware Weight Quantization" (arXiv:2306.00978).
Siblings (weights that multiply the same activation) are searched jointly: concatenate them along ``c_out``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from jaxq.errors import JaxqError
from jaxq.formats.base import check_format
from jaxq.formats.registry import WeightFormat
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.gptq import damp
from jaxq.numerics import checks
from jaxq.numerics.blocks import join, split
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import (
    Moments,
    check_moments,
    check_whole_moments,
    diagonal_blocks,
    output_error,
    scaled_moment,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaleChoice:
    """Result of `search_scales`.

    Attributes:
        s: The chosen scale of each input channel; ones where no scaling was best.
        best: Index of the chosen candidate.
        losses: Output error of each candidate at its best shift (`awq_shifts`), summed over the columns compared.
    """

    s: Float[Array, "c_in"]
    best: Int[Array, ""]
    losses: Float[Array, "candidates"]


@partial(jax.tree_util.register_dataclass, data_fields=["alphas"], meta_fields=["shifts"])
@dataclass(frozen=True)
class _Candidates:
    """Candidates for the scale of all channels: each alpha with each of `awq_shifts`, which are static under jit."""

    alphas: Float[Array, "candidates"]
    shifts: tuple[float, ...]


@jit(static_argnames="block_size", checks={"w": checks.weight, "block_size": checks.whole_number})
def weight_magnitude(w: Float[Array, "c_in c_out"], block_size: int) -> Float[Array, "c_in"]:
    """Relative magnitude of each input channel's weights: mean over columns of ``|W| / max|block|``.

    Blocks are consecutive rows; a block of zeros counts as 0.

    Args:
        w: Weight, or siblings side by side.
        block_size: Rows a block, or -1.

    Example:
        >>> weight_magnitude(jnp.array([[1.0, 2.0], [2.0, 1.0]]), block_size=2).tolist()
        [0.75, 0.75]
    """
    blocks = jnp.abs(split(w.astype(jnp.float32), block_size))
    amax = jnp.max(blocks, axis=1, keepdims=True)
    return join(jnp.mean(blocks / jnp.where(amax > 0, amax, 1), axis=2), w.shape[0])


@jit(checks={"a": checks.array, "w_mean": checks.array, "alpha": checks.number, "shift": checks.number})
def awq_scale(
    a: Float[Array, "c_in"],
    w_mean: Float[Array, "c_in"],
    alpha: float | Float[Array, ""],
    shift: float | Float[Array, ""] = 0.0,
) -> Float[Array, "c_in"]:
    """AWQ's scale: ``s = clip(a^alpha / w_mean^(1 - alpha), 1e-4, 1e4)``, times ``2^shift / sqrt(max s * min s)``.

    Args:
        a: Mean absolute activation of each channel, at least 0.
        w_mean: `weight_magnitude`, at least 0.
        alpha: In [0, 1]; a negative one (`IDENTITY`) gives ones.
        shift: Exponent of a factor common to all channels; see `awq_shifts`.

    Example:
        >>> awq_scale(jnp.array([4.0, 1.0]), jnp.ones(2), 1.0).tolist()
        [2.0, 0.5]
    """
    tiny = jnp.finfo(jnp.float32).tiny
    s = jnp.clip(a**alpha / (w_mean ** (1 - alpha) + tiny), 1e-4, 1e4)
    s = s / jnp.sqrt(jnp.max(s) * jnp.min(s)) * jnp.exp2(shift)
    return jnp.where(alpha < 0, jnp.ones_like(s), s)


def awq_shifts(formats: Sequence[WeightFormat]) -> tuple[float, ...]:
    """Exponents ``t`` of the common factors ``2^t`` with which each of AWQ's scales is tried.

    Block scales that are floats absorb such a factor. Those of MXFP4 are powers of two: there the error depends on
    where the greatest weight of a block lies between two powers, with period 1 in ``t``. MXFP8 needs no shifts, because
    the relative precision of its codes is nearly constant.

    Example:
        >>> from jaxq.formats.registry import MxFormat, Nvfp4Format
        >>> awq_shifts([Nvfp4Format()]), awq_shifts([Nvfp4Format(), MxFormat("mxfp4")])
        ((0.0,), (0.0, 0.25, 0.5, 0.75))
    """
    return (0.0, 0.25, 0.5, 0.75) if any(fmt.dtype == "mxfp4" for fmt in formats) else (0.0,)


def search_scales(
    w: Float[Array, "c_in c_out"],
    moments: Moments,
    alphas: Float[Array, "candidates"],
    fmt: WeightFormat,
    columns: int = 0,
    batch_size: int = 1,
) -> ScaleChoice:
    """AWQ-lite: the scale with the least output error ``||X (dq(q(s W)) / s - W)||^2 / tokens``.

    Costs about ``1.25 c_in^2 c_out`` operations a candidate, whatever the number of tokens. All columns share the
    scale, so an evenly spaced sample of them ranks the candidates almost as well, for less.

    Args:
        w: Sibling weights side by side. They share the scale, and their losses are added.
        moments: Moments of the activation that they multiply.
        alphas: Candidates, as `alpha_grid` gives them. The first one wins ties.
        fmt: The format that the scaled weight is rounded to.
        columns: Number of evenly spaced columns to compare on; 0 for all.
        batch_size: Candidates evaluated at a time (vmap); each needs memory for a few copies of ``w``.

    Returns:
        The scale of each input channel, with the losses of all candidates.

    Raises:
        JaxqError: ``columns`` is negative, or the shapes of ``w`` and the moments do not fit each other.

    Example:
        >>> from jaxq.methods.grids import alpha_grid
        >>> x = jax.random.normal(jax.random.key(0), (64, 8)) * jnp.array([30.0, 1, 1, 1, 1, 1, 1, 1])
        >>> w = jax.random.normal(jax.random.key(1), (8, 4))
        >>> m = Moments(x.T @ x / 64, jnp.abs(x).mean(0), jnp.array(64))
        >>> from jaxq.formats.registry import IntegerFormat
        >>> choice = search_scales(w, m, jnp.array(alpha_grid(0.25)), IntegerFormat(block_size=8))
        >>> bool(choice.losses[choice.best] < choice.losses[0])    # better than no scaling
        True
    """
    return search_shared_scales([(w, fmt)], moments, alphas, columns, batch_size)


def search_shared_scales(
    parts: Sequence[tuple[Float[Array, "c_in _"], WeightFormat]],
    moments: Moments,
    alphas: Float[Array, "candidates"],
    columns: int = 0,
    batch_size: int = 1,
    block_damping: float | None = None,
) -> ScaleChoice:
    """`search_scales` for siblings of several formats: one scale, with the least sum of their output errors.

    Args:
        parts: The siblings of each format side by side, with that format.
        moments, alphas, columns, batch_size: As for `search_scales`; ``columns`` are those of each part.
        block_damping: Damping of the moments under which each candidate gets searched block scales before its error is
            measured (`search_block_scales`); None to round each candidate to nearest under plain scales.

    Returns:
        The scale of each input channel, with the losses of all candidates.

    Raises:
        JaxqError: ``columns`` is negative, or the shapes of a weight and the moments do not fit each other.
    """
    check_whole_moments("moments", moments)
    checks.whole_number("columns", columns)
    checks.positive("batch_size", batch_size, "the number of candidates at a time")
    alphas = jnp.asarray(alphas, jnp.float32)
    if columns < 0:
        raise JaxqError(f"columns is {columns}: give a number of columns, or 0 for all")
    for w, fmt in parts:
        check_format("fmt", fmt)
        checks.weight("w", w)
        check_moments(w, moments.h)
    # The mean over the columns of all parts, each with the blocks of its own format.
    widths = [w.shape[1] for w, _ in parts]
    w_mean = _weighted_sum([weight_magnitude(w, fmt.block_size) for w, fmt in parts], [n / sum(widths) for n in widths])
    candidates = _Candidates(alphas, awq_shifts([fmt for _, fmt in parts]))
    # A part's loss on a sample stands for all its columns, so that narrow parts do not outweigh wide ones.
    losses, factors = [], []
    for w, fmt in parts:
        sample = sample_columns(w, columns) if 0 < columns < w.shape[1] else w
        losses.append(_scale_losses(sample, w_mean, moments, candidates, block_damping, fmt, batch_size))
        factors.append(w.shape[1] / sample.shape[1] if len(parts) > 1 else 1.0)
    return _choose_scale(_weighted_sum(losses, factors), moments.a, w_mean, candidates)


def _weighted_sum(arrays: Sequence[Array], factors: Sequence[float]) -> Array:
    """The sum of arrays times factors; a single array as it is, because its factor is 1 and a sum would compile."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.sum(jnp.stack(arrays) * jnp.array(factors).reshape(-1, *[1] * arrays[0].ndim), axis=0)


@jit
def _choose_scale(
    losses: Float[Array, "candidates shifts"],
    a: Float[Array, "c_in"],
    w_mean: Float[Array, "c_in"],
    candidates: _Candidates,
) -> ScaleChoice:
    # A loss that overflowed may be NaN, which argmin would take.
    index = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    shifts = candidates.shifts
    best, shift = index // len(shifts), jnp.array(shifts)[index % len(shifts)]
    return ScaleChoice(awq_scale(a, w_mean, candidates.alphas[best], shift), best, jnp.nanmin(losses, axis=1))


@jit(static_argnames="columns")
def sample_columns(w: Float[Array, "c_in c_out"], columns: int) -> Float[Array, "c_in columns"]:
    """``columns`` evenly spaced columns of ``w``, from the first to the last."""
    return w[:, np.linspace(0, w.shape[1] - 1, columns).round().astype(int)]


# The shape of the whole weight is no argument: groups with as many input channels share the compiled function.
@jit(static_argnames=("fmt", "batch_size"))
def _scale_losses(
    w: Float[Array, "c_in columns"],
    w_mean: Float[Array, "c_in"],
    moments: Moments,
    candidates: _Candidates,
    block_damping: float | Float[Array, ""] | None,
    fmt: WeightFormat,
    batch_size: int,
) -> Float[Array, "candidates shifts"]:
    """Output error of the columns of ``w`` for each candidate."""
    w = w.astype(jnp.float32)
    alphas, shifts = candidates.alphas, candidates.shifts

    def rounded(scaled: Float[Array, "c_in columns"], s: Float[Array, "c_in"]) -> Float[Array, "c_in columns"]:
        if block_damping is None:
            return fmt.round_trip(scaled)
        # The activation is divided by s, and block scales are searched under the moments of the divided one.
        scales = search_block_scales(scaled, damp(scaled_moment(moments.h, s), block_damping), fmt)
        return fmt.round_to(scaled, fmt.grid(scales, w.shape[0]))

    def loss(point: tuple[Float[Array, ""], Float[Array, ""]]) -> Float[Array, ""]:
        # Quantize s W, then divide by s: the error is measured in the units of W, under the unscaled moments.
        s = awq_scale(moments.a, w_mean, *point)
        return jnp.sum(output_error(rounded(w * s[:, None], s) / s[:, None] - w, moments.h))

    # One point after the other, `batch_size` at a time: all at once would need a few copies of the weight for each.
    points = jnp.repeat(alphas, len(shifts)), jnp.tile(jnp.array(shifts), len(alphas))
    return jax.lax.map(loss, points, batch_size=batch_size).reshape(len(alphas), len(shifts))


@jit(static_argnames="fmt", checks={"w": checks.weight, "h": checks.square, "fmt": check_format})
def search_clip(
    w: Float[Array, "c_in c_out"],
    h: Float[Array, "c_in c_in"],
    ratios: Float[Array, "candidates"],
    fmt: WeightFormat,
) -> Float[Array, "n_blocks c_out"]:
    """AWQ-clip: the clip ratio of each block and column with the least block error ``d' H_bb d``.

    Costs ``2 block c_in c_out`` operations a candidate and ``2.5 c_in^2 c_out`` once; every token counts. The search
    takes the blocks as independent. A column whose clipped blocks together have a greater error under the whole of
    ``h`` stays unclipped, so no column's output error grows.

    Args:
        w: Weight; for AWQ-full, the scaled one.
        h: Second moment of the activation; for AWQ-full, of the scaled one: ``diag(1/s) H diag(1/s)``.
        ratios: Candidates, as `ratio_grid` gives them. The first one, 1, wins ties.
        fmt: The format that the clipped weight is rounded to.

    Returns:
        The chosen ratio of each block and column.

    Raises:
        JaxqError: the shapes of ``w`` and ``h`` do not fit each other.

    Example:
        >>> from jaxq.methods.grids import ratio_grid
        >>> x = jax.random.normal(jax.random.key(0), (64, 8))
        >>> w = jax.random.normal(jax.random.key(1), (8, 4))
        >>> from jaxq.formats.registry import IntegerFormat
        >>> search_clip(w, x.T @ x / 64, jnp.array(ratio_grid(0.5, 0.05)), IntegerFormat(block_size=4)).shape
        (2, 4)
    """
    check_moments(w, h)
    w = w.astype(jnp.float32)
    h_blocks = diagonal_blocks(h, fmt.block_size)

    def block_error(ratio: Float[Array, ""]) -> Float[Array, "n_blocks c_out"]:
        d = split(fmt.round_trip(w, ratio) - w, fmt.block_size)
        return jnp.sum(d * jnp.einsum("bij,bjo->bio", h_blocks, d, precision=Precision.HIGHEST), axis=1)

    def step(carry: tuple[Array, Array], ratio: Array) -> tuple[tuple[Array, Array], None]:
        # Strictly less, so that the earlier ratio, which clips less, wins ties.
        least_error, chosen = carry
        error = block_error(ratio)
        return (jnp.minimum(error, least_error), jnp.where(error < least_error, ratio, chosen)), None

    # Made from the blocks of `w`, so that it is sharded like them.
    unclipped = jnp.ones_like(jnp.max(split(w, fmt.block_size), axis=1))
    (_, chosen), _ = jax.lax.scan(step, (unclipped * jnp.inf, unclipped), jnp.asarray(ratios))
    # Blocks were searched one by one: compare whole columns, with the errors that cancel between blocks.
    better = output_error(fmt.round_trip(w, chosen) - w, h) < output_error(fmt.round_trip(w) - w, h)
    return jnp.where(better, chosen, unclipped)
