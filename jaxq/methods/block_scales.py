"""Block scales, searched for the least output error of each block under the second moments."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from jaxq.formats.base import Scales, check_format
from jaxq.formats.registry import WeightFormat
from jaxq.numerics import checks
from jaxq.numerics.blocks import per_block, split
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import check_moments, diagonal_blocks

_MIN_RANK = 16
_ROWS_PER_RANK = 8  # the rank grows with blocks of more than 128 rows
_NEGLIGIBLE = 1e-6  # times the greatest diagonal entry: smaller pivots are float32's rounding errors


def search_block_scales(w: Float[Array, "c_in c_out"], h: Float[Array, "c_in c_in"], fmt: WeightFormat) -> Scales:
    """Scales of each block and column with the least ``d' H_bb d``, ``d`` being the block's rounding error.

    The format gives the candidates: factors of both signs for integers, or factors of either end of the range with a
    zero point; neighbours in E4M3 for NVFP4; exponents for MX. The plain scales (`fmt.plain_scales`) come first
    and win ties.

    ``H_bb`` is approximated by ``V V' + diag(H_bb - V V')``. ``V`` is that of `low_rank`, with 16 columns, or an eighth
    of the block's rows where this is more: a few directions have nearly all of an activation's energy. The search costs
    ``2 rank c_in c_out`` operations a candidate, whatever the number of tokens.

    Args:
        w: Weight.
        h: Second moment of the activation, symmetric.
        fmt: The format.

    Returns:
        The chosen scales, as `fmt.plain_scales` gives them.

    Raises:
        JaxqError: the shapes of ``w`` and ``h`` do not fit each other, or ``w`` is not finite.

    Example:
        >>> from jaxq.formats.registry import IntegerFormat
        >>> x = jax.random.normal(jax.random.key(0), (64, 8))
        >>> w = jax.random.normal(jax.random.key(1), (8, 4))
        >>> search_block_scales(w, x.T @ x / 64, IntegerFormat(block_size=4)).s.shape
        (2, 4)
    """
    check_format("fmt", fmt)
    checks.weight("w", w)
    check_moments(w, h)
    return _search(w, _approximate(h, fmt.block_size), fmt)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _LowRank:
    """Each ``H_bb`` as ``V V' + diag(residual)``."""

    v: Float[Array, "n_blocks block rank"]
    residual: Float[Array, "n_blocks block"]


# Jitted apart from the search, so that weights and formats with this block size share the compiled function.
@jit(static_argnames="block_size")
def _approximate(h: Float[Array, "c_in c_in"], block_size: int) -> _LowRank:
    h_blocks = diagonal_blocks(h, block_size)
    block = h_blocks.shape[1]
    v = low_rank(h_blocks, min(max(_MIN_RANK, block // _ROWS_PER_RANK), block))
    return _LowRank(v, jnp.diagonal(h_blocks, axis1=1, axis2=2) - jnp.sum(jnp.square(v), axis=2))


@jit(static_argnames="fmt")
def _search(w: Float[Array, "c_in c_out"], h: _LowRank, fmt: WeightFormat) -> Scales:
    w = w.astype(jnp.float32)
    blocks = split(w, fmt.block_size)

    def error(scales: Scales) -> Float[Array, "n_blocks c_out"]:
        # d' H_bb d = ||V' d||^2 + sum of residual d^2, for all blocks and columns at once.
        grid = jax.tree.map(per_block, fmt.block_grid(scales))
        d = fmt.round_to(blocks, grid) - blocks
        along = jnp.einsum("bir,bio->bro", h.v, d, precision=Precision.HIGHEST)
        return jnp.sum(jnp.square(along), axis=1) + jnp.sum(h.residual[:, :, None] * jnp.square(d), axis=1)

    def step(best: tuple[Array, Scales], point: Array) -> tuple[tuple[Array, Scales], None]:
        # Strictly less, so that the earlier candidate wins ties.
        least_error, best_scales = best
        candidate = fmt.candidate(w, point)
        candidate_error = error(candidate)
        better = candidate_error < least_error
        return (jnp.minimum(candidate_error, least_error), _where(better, candidate, best_scales)), None

    # One candidate after the other: memory for a few copies of the weight, whatever their number.
    plain = fmt.plain_scales(w)
    (_, chosen), _ = jax.lax.scan(step, (error(plain), plain), jnp.asarray(fmt.candidates()))
    return chosen


@jit(static_argnames="rank")
def low_rank(h: Float[Array, "n_blocks block block"], rank: int) -> Float[Array, "n_blocks block rank"]:
    """``V`` with ``V V'`` near each ``H``: the first ``rank`` columns of a pivoted Cholesky factor.

    The pivot is the greatest diagonal entry that is left. The diagonal of ``H - V V'`` is nowhere negative, up to
    rounding, where ``H`` is positive semidefinite.

    Args:
        h: Symmetric matrices.
        rank: Number of columns, at most ``block``.

    Source: Harbrecht, Peters and Schneider, "On the low-rank approximation by the pivoted Cholesky decomposition"
        (2012).

    Example:
        >>> low_rank(jnp.array([[[4.0, 2.0], [2.0, 1.0]]]), 1).tolist()
        [[[2.0], [1.0]]]
    """
    diagonal = jnp.diagonal(h, axis1=1, axis2=2)
    negligible = _NEGLIGIBLE * jnp.max(diagonal, axis=1)

    def column(k: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        v, residual = state
        # Each matrix has its own pivot: the greatest entry left on the diagonal.
        pivot = jnp.argmax(residual, axis=1)[:, None]
        top = jnp.take_along_axis(residual, pivot, axis=1)
        # The pivot's column of H, less the columns of V before this one.
        v_row = jnp.take_along_axis(v, pivot[:, :, None], axis=1)[:, 0]
        known = jnp.einsum("bir,br->bi", v, v_row, precision=Precision.HIGHEST)
        new = jnp.take_along_axis(h, pivot[:, None, :], axis=2)[:, :, 0] - known
        # Zeros where only rounding errors are left: their square root would amplify them.
        new = jnp.where(top > negligible[:, None], new / jnp.sqrt(jnp.where(top > 0, top, 1)), 0)
        return v.at[:, :, k].set(new), jnp.maximum(residual - jnp.square(new), 0)

    return jax.lax.fori_loop(0, rank, column, (jnp.zeros((*h.shape[:2], rank), h.dtype), diagonal))[0]


def _where(take: Array, new: Scales, old: Scales) -> Scales:
    """``new`` for the blocks and columns to take, else ``old``; both have the same scale of the whole weight."""
    zp = None if new.zp is None or old.zp is None else jnp.where(take, new.zp, old.zp)
    return Scales(jnp.where(take, new.s, old.s), zp, old.s2)
