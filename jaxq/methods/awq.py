"""AWQ: activation-aware scales and clip ratios, searched on second moments instead of tokens.

Source of the method: Lin et al., "AWQ: Activation-aware Weight Quantization" (arXiv:2306.00978).
Siblings (weights that read the same activation) are searched jointly: put them side by side along ``c_out``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from jaxq.errors import JaxqError
from jaxq.formats.registry import WeightFormat
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.gptq import damp
from jaxq.numerics.blocks import join, split
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import Moments, check_moments, diagonal_blocks, output_error

IDENTITY = -1.0
"""The alpha that stands for "no scaling" in a list of candidates."""

_LEAST_STEP = 0.001  # a finer grid shows nothing, and takes forever


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaleChoice:
    """Result of `search_scales`.

    Attributes:
        s: The chosen scale of each input channel; ones where no scaling was best.
        best: Index of the choice among the candidates.
        losses: Output error of each candidate with the best of `awq_shifts`, summed over the columns looked at.
    """

    s: Float[Array, "c_in"]
    best: Int[Array, ""]
    losses: Float[Array, "candidates"]


def alpha_grid(alpha_step: float) -> tuple[float, ...]:
    """Candidates for alpha: `IDENTITY` first, so that it wins ties, then 0, step, ... up to 1.

    Raises:
        JaxqError: the step is not in [0.001, 1].

    Example:
        >>> alpha_grid(0.5)
        (-1.0, 0.0, 0.5, 1.0)
    """
    if not _LEAST_STEP <= alpha_step <= 1:
        raise JaxqError(f"alpha_step is {alpha_step}: give a step from {_LEAST_STEP} to 1")
    return (IDENTITY, *(round(float(a), 6) for a in np.arange(0, 1 + alpha_step / 2, alpha_step) if a <= 1 + 1e-9))


def ratio_grid(min_clip_ratio: float, clip_step: float) -> tuple[float, ...]:
    """Candidates for the clip ratio: 1 first, so that it wins ties, then 1 - step, ... down to ``min_clip_ratio``.

    Raises:
        JaxqError: ``min_clip_ratio`` is not in (0, 1], or ``clip_step`` not in [0.001, 1].

    Example:
        >>> ratio_grid(0.8, 0.1)
        (1.0, 0.9, 0.8)
    """
    if not 0 < min_clip_ratio <= 1:
        raise JaxqError(f"min_clip_ratio is {min_clip_ratio}: give the least clip ratio, in (0, 1]")
    if not _LEAST_STEP <= clip_step <= 1:
        raise JaxqError(f"clip_step is {clip_step}: give a step from {_LEAST_STEP} to 1")
    count = int((1 - min_clip_ratio) / clip_step + 1e-9)
    return tuple(round(1.0 - i * clip_step, 6) for i in range(count + 1))


@jit(static_argnames="block_size")
def weight_magnitude(w: Float[Array, "c_in c_out"], block_size: int) -> Float[Array, "c_in"]:
    """How large each input channel's weights are within their blocks: mean over columns of ``|W| / max|block|``.

    Blocks are consecutive rows; a block of zeros counts as 0.

    Example:
        >>> weight_magnitude(jnp.array([[1.0, 2.0], [2.0, 1.0]]), block_size=2).tolist()
        [0.75, 0.75]
    """
    blocks = jnp.abs(split(w.astype(jnp.float32), block_size))
    amax = jnp.max(blocks, axis=1, keepdims=True)
    return join(jnp.mean(blocks / jnp.where(amax > 0, amax, 1), axis=2), w.shape[0])


@jit
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
        shift: See `awq_shifts`.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    s = jnp.clip(a**alpha / (w_mean ** (1 - alpha) + tiny), 1e-4, 1e4)
    s = s / jnp.sqrt(jnp.max(s) * jnp.min(s)) * jnp.exp2(shift)
    return jnp.where(alpha < 0, jnp.ones_like(s), s)


def awq_shifts(formats: Sequence[WeightFormat]) -> tuple[float, ...]:
    """Exponents ``t`` of the factors ``2^t``, common to all channels, that AWQ's scales are looked at with.

    A scale that is a float takes up such a factor, and nothing changes. MXFP4's is a power of two: what is lost depends
    on where between two of them the blocks' greatest weights lie, and comes round again at ``t = 1``. Codes of MXFP8
    have as many digits everywhere.

    Example:
        >>> from jaxq.formats.registry import MxFormat, Nvfp4Format
        >>> awq_shifts([Nvfp4Format()]), awq_shifts([Nvfp4Format(), MxFormat("mxfp4")])
        ((0.0,), (0.0, 0.25, 0.5, 0.75))
    """
    return (0.0, 0.25, 0.5, 0.75) if any(fmt.dtype == "mxfp4" for fmt in formats) else (0.0,)


@jit
def scaled_moment(h: Float[Array, "c_in c_in"], s: Float[Array, "c_in"]) -> Float[Array, "c_in c_in"]:
    """Second moment of an activation divided by ``s``: ``diag(1/s) H diag(1/s)``.

    Example:
        >>> scaled_moment(jnp.array([[4.0, 2.0], [2.0, 1.0]]), jnp.array([2.0, 1.0])).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    return h / s[:, None] / s[None, :]


def search_scales(
    w: Float[Array, "c_in c_out"],
    moments: Moments,
    alphas: Float[Array, "candidates"],
    fmt: WeightFormat,
    columns: int = 0,
    batch_size: int = 1,
) -> ScaleChoice:
    """AWQ-lite: the scale with the least output error ``||X (dq(q(s W)) / s - W)||^2 / tokens``.

    Costs about ``1.25 c_in^2 c_out`` operations a candidate, whatever the number of tokens. The scale is one for all
    columns, so that an evenly spaced sample of them ranks the candidates almost as well, for less.

    Args:
        w: Sibling weights side by side; the loss is their sum, the scale common to all.
        moments: Moments of the activation that they read.
        alphas: Candidates, as `alpha_grid` gives them. The first one wins ties.
        fmt: The format that the scaled weight is rounded to.
        columns: Look at this many evenly spaced columns; 0 for all.
        batch_size: Candidates evaluated at a time (vmap); each holds a few copies of ``w``.

    Example:
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
    """`search_scales` for siblings of several formats: one scale, the least sum of their output errors.

    Args:
        parts: Sibling weights side by side, with the format of each lot.
        moments, alphas, columns, batch_size: As for `search_scales`; ``columns`` of each lot.
        block_damping: Compare by what searched block scales leave (`search_block_scales`), with the
            scaled moments damped by this; None: by what plain rounding leaves.
    """
    alphas = jnp.asarray(alphas, jnp.float32)
    if columns < 0:
        raise JaxqError(f"columns is {columns}: give a number of columns, or 0 for all")
    for w, _ in parts:
        check_moments(w, moments.h)
    shares = [w.shape[1] for w, _ in parts]
    w_mean = _weighted_sum([weight_magnitude(w, fmt.block_size) for w, fmt in parts], [n / sum(shares) for n in shares])
    shifts = awq_shifts([fmt for _, fmt in parts])
    losses, weights = [], []
    for w, fmt in parts:
        seen = sample_columns(w, columns) if 0 < columns < w.shape[1] else w
        losses.append(_scale_losses(seen, w_mean, moments, alphas, block_damping, shifts, fmt, batch_size))
        weights.append(w.shape[1] / seen.shape[1] if len(parts) > 1 else 1.0)
    return _choose_scale(_weighted_sum(losses, weights), moments.a, w_mean, alphas, shifts)


def _weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """A single array as it is: that compiles nothing."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.sum(jnp.stack(arrays) * jnp.array(weights).reshape(-1, *[1] * arrays[0].ndim), axis=0)


@jit(static_argnames="shifts")
def _choose_scale(
    losses: Float[Array, "candidates shifts"],
    a: Float[Array, "c_in"],
    w_mean: Float[Array, "c_in"],
    alphas: Float[Array, "candidates"],
    shifts: tuple[float, ...],
) -> ScaleChoice:
    least = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    best, shift = least // len(shifts), jnp.array(shifts)[least % len(shifts)]
    return ScaleChoice(awq_scale(a, w_mean, alphas[best], shift), best, jnp.nanmin(losses, axis=1))


@jit(static_argnames="columns")
def sample_columns(w: Float[Array, "c_in c_out"], columns: int) -> Float[Array, "c_in columns"]:
    """``columns`` evenly spaced columns of ``w``, from the first to the last."""
    return w[:, np.linspace(0, w.shape[1] - 1, columns).round().astype(int)]


# Apart from the whole weight's shape: groups with as many input channels share what is compiled.
@jit(static_argnames=("shifts", "fmt", "batch_size"))
def _scale_losses(
    w: Float[Array, "c_in columns"],
    w_mean: Float[Array, "c_in"],
    moments: Moments,
    alphas: Float[Array, "candidates"],
    block_damping: float | Float[Array, ""] | None,
    shifts: tuple[float, ...],
    fmt: WeightFormat,
    batch_size: int,
) -> Float[Array, "candidates shifts"]:
    w = w.astype(jnp.float32)

    def left(scaled: Float[Array, "c_in columns"], s: Float[Array, "c_in"]) -> Float[Array, "c_in columns"]:
        if block_damping is None:
            return fmt.round_trip(scaled)
        scales = search_block_scales(scaled, damp(scaled_moment(moments.h, s), block_damping), fmt)
        return fmt.round_to(scaled, fmt.grid(scales, w.shape[0]))

    def loss(point: tuple[Float[Array, ""], Float[Array, ""]]) -> Float[Array, ""]:
        s = awq_scale(moments.a, w_mean, *point)
        return jnp.sum(output_error(left(w * s[:, None], s) / s[:, None] - w, moments.h))

    points = jnp.repeat(alphas, len(shifts)), jnp.tile(jnp.array(shifts), len(alphas))
    return jax.lax.map(loss, points, batch_size=batch_size).reshape(len(alphas), len(shifts))


@jit(static_argnames="fmt")
def search_clip(
    w: Float[Array, "c_in c_out"],
    h: Float[Array, "c_in c_in"],
    ratios: Float[Array, "candidates"],
    fmt: WeightFormat,
) -> Float[Array, "n_blocks c_out"]:
    """AWQ-clip: for each block and column the clip ratio with the least block error ``d' H_bb d``.

    Costs ``2 block c_in c_out`` operations a candidate and ``2.5 c_in^2 c_out`` once; every token counts. Blocks are
    searched as if independent; a column whose blocks together do worse under the whole of ``h`` than unclipped ones
    stays unclipped, so no column's output error ever grows.

    Args:
        w: Weight; for AWQ-full, the scaled one.
        h: Second moment of the activation; for AWQ-full, of the scaled one: ``diag(1/s) H diag(1/s)``.
        ratios: Candidates, as `ratio_grid` gives them: 1 first; it wins ties.
        fmt: The format that the clipped weight is rounded to.

    Returns:
        The chosen ratio of each block and column.

    Example:
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
        least, chosen = carry
        error = block_error(ratio)
        return (jnp.minimum(error, least), jnp.where(error < least, ratio, chosen)), None

    plain = jnp.ones_like(w[: h_blocks.shape[0]])  # made from w, so that it is sharded alike
    (_, chosen), _ = jax.lax.scan(step, (plain * jnp.inf, plain), jnp.asarray(ratios))
    better = output_error(fmt.round_trip(w, chosen) - w, h) < output_error(fmt.round_trip(w) - w, h)
    return jnp.where(better, chosen, plain)
