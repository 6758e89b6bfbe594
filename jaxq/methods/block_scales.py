"""Scales of each block, searched for the least output error of the block under the second moments."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from jaxq.formats.base import Scales
from jaxq.formats.registry import WeightFormat
from jaxq.numerics.blocks import per_block, split
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import check_moments, diagonal_blocks

_RANK = 16
_SHARE = 8  # of a block's rows, where that is more
_NOTHING = 1e-6  # of the greatest diagonal entry: below it is the rounding of float32


def search_block_scales(w: Float[Array, "c_in c_out"], h: Float[Array, "c_in c_in"], fmt: WeightFormat) -> Scales:
    """For each block and column the scales with the least ``d' H_bb d``, ``d`` the block's rounding error.

    Candidates are those of the format: a range of factors of both signs for integers, of either end of the range with
    a zero point; neighbours in E4M3 for NVFP4; exponents for MX. The plain scales are looked at first and win ties.
    They are compared under ``V V' + diag(H_bb - V V')`` instead of ``H_bb``, `low_rank`'s ``V`` of 16 columns (an
    eighth of the rows if that is more): a few directions hold nearly all of an activation's energy. Costs
    ``2 rank c_in c_out`` operations a candidate, whatever the number of tokens.

    Args:
        w: Weight.
        h: Second moment of the activation, symmetric.
        fmt: The format.

    Returns:
        The chosen scales.

    Raises:
        JaxqError: the shapes do not fit.

    Example:
        >>> from jaxq.formats.registry import IntegerFormat
        >>> x = jax.random.normal(jax.random.key(0), (64, 8))
        >>> w = jax.random.normal(jax.random.key(1), (8, 4))
        >>> search_block_scales(w, x.T @ x / 64, IntegerFormat(block_size=4)).s.shape
        (2, 4)
    """
    check_moments(w, h)
    return _search(w, _stand_in(h, fmt.block_size), fmt)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _StandIn:
    """For each ``H_bb``: ``V`` of `low_rank`, and the diagonal of the rest."""

    v: Float[Array, "n_blocks block rank"]
    rest: Float[Array, "n_blocks block"]


# Apart from the search, so that weights and formats with these blocks share what is compiled.
@jit(static_argnames="block_size")
def _stand_in(h: Float[Array, "c_in c_in"], block_size: int) -> _StandIn:
    h_blocks = diagonal_blocks(h, block_size)
    block = h_blocks.shape[1]
    v = low_rank(h_blocks, min(max(_RANK, block // _SHARE), block))
    return _StandIn(v, jnp.diagonal(h_blocks, axis1=1, axis2=2) - jnp.sum(jnp.square(v), axis=2))


@jit(static_argnames="fmt")
def _search(w: Float[Array, "c_in c_out"], h: _StandIn, fmt: WeightFormat) -> Scales:
    w = w.astype(jnp.float32)
    blocks = split(w, fmt.block_size)

    def error(scales: Scales) -> Float[Array, "n_blocks c_out"]:
        grid = jax.tree.map(per_block, fmt.block_grid(scales))
        d = fmt.round_to(blocks, grid) - blocks
        along = jnp.einsum("bir,bio->bro", h.v, d, precision=Precision.HIGHEST)
        return jnp.sum(jnp.square(along), axis=1) + jnp.sum(h.rest[:, :, None] * jnp.square(d), axis=1)

    def step(least: tuple[Array, Scales], point: Array) -> tuple[tuple[Array, Scales], None]:
        new = fmt.candidate(w, point)
        found = error(new)
        return (jnp.minimum(found, least[0]), _where(found < least[0], new, least[1])), None

    plain = fmt.find_scales(w)
    (_, chosen), _ = jax.lax.scan(step, (error(plain), plain), jnp.asarray(fmt.candidates()))
    return chosen


@jit(static_argnames="rank")
def low_rank(h: Float[Array, "n_blocks block block"], rank: int) -> Float[Array, "n_blocks block rank"]:
    """``V`` with ``V V'`` near each ``H``: Cholesky's factor with the greatest diagonal entries first, cut off.

    Nothing of the diagonal of ``H - V V'`` is negative where ``H`` is positive semidefinite.

    Args:
        h: Symmetric matrices.
        rank: Number of columns, at most ``block``.

    Example:
        >>> low_rank(jnp.array([[[4.0, 2.0], [2.0, 1.0]]]), 1).tolist()
        [[[2.0], [1.0]]]
    """
    diagonal = jnp.diagonal(h, axis1=1, axis2=2)
    least = _NOTHING * jnp.max(diagonal, axis=1)

    def column(k: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        v, left = state
        pivot = jnp.argmax(left, axis=1)[:, None]
        top = jnp.take_along_axis(left, pivot, axis=1)
        row = jnp.take_along_axis(v, pivot[:, :, None], axis=1)[:, 0]
        known = jnp.einsum("bir,br->bi", v, row, precision=Precision.HIGHEST)
        new = jnp.take_along_axis(h, pivot[:, None, :], axis=2)[:, :, 0] - known
        new = jnp.where(top > least[:, None], new / jnp.sqrt(jnp.where(top > 0, top, 1)), 0)
        return v.at[:, :, k].set(new), jnp.maximum(left - jnp.square(new), 0)

    return jax.lax.fori_loop(0, rank, column, (jnp.zeros((*h.shape[:2], rank), h.dtype), diagonal))[0]


def _where(take: Array, new: Scales, old: Scales) -> Scales:
    zp = None if new.zp is None or old.zp is None else jnp.where(take, new.zp, old.zp)
    return Scales(jnp.where(take, new.s, old.s), zp, old.s2)
