"""GPTQ: codes chosen row by row, each row's rounding error made up for by the rows after it.

Source of the method: Frantar et al., "GPTQ: Accurate Post-Training Quantization" (arXiv:2210.17323), with the scales of
blocks fixed beforehand; the passes after it are coordinate descent on the same loss, as in Behdin et al., "QuantEase"
(arXiv:2309.01885).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from jaxq.errors import JaxqError
from jaxq.formats.base import Grid, Scales
from jaxq.formats.registry import WeightFormat
from jaxq.numerics.integer import check_scales
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import check_moments

Rows = TypeVar("Rows")

_PANEL = 128
"""Rows that are rounded one after the other before the rest of the matrix hears of them."""

_MORE_DAMPING = 10.0
_TRIES = 6


@jit
def damp(h: Float[Array, "c_in c_in"], damping: float | Float[Array, ""]) -> Float[Array, "c_in c_in"]:
    """``H + damping mean(diag H) I``; of zeros alone, the identity.

    Example:
        >>> damp(jnp.array([[1.0, 0.0], [0.0, 3.0]]), 0.5).tolist()
        [[2.0, 0.0], [0.0, 4.0]]
    """
    mean = jnp.mean(jnp.diagonal(h))
    return h + jnp.where(mean > 0, damping * mean, 1.0) * jnp.eye(h.shape[0], dtype=h.dtype)


@jit
def feedback(
    h: Float[Array, "c_in c_in"], damping: float | Float[Array, ""]
) -> tuple[Float[Array, "c_in c_in"], Float[Array, ""]]:
    """Upper triangular ``U`` with ones on its diagonal and ``U D U' = H + damping mean(diag H) I``, and that damping.

    With the errors ``E`` of the rows before it, row ``j`` is best rounded at ``w_j + sum_(i<j) U_ij E_i``.
    Where the damped ``H`` is not positive definite in float32 the damping grows tenfold until it is, from 1e-6 at
    least; the identity stands in for ``U`` where that does not help (``H`` is not finite).

    Example:
        >>> u, taken = feedback(jnp.array([[5.0, 2.0], [2.0, 4.0]]), 0.0)
        >>> u.tolist(), float(taken)
        ([[1.0, 0.5], [0.0, 1.0]], 0.0)
    """

    h = h.astype(jnp.float32)

    def factor(damping: Array) -> Array:
        # H = R R' with R upper triangular: the Cholesky factor of H turned around.
        r = jnp.linalg.cholesky(damp(h, damping)[::-1, ::-1])[::-1, ::-1]
        return jnp.triu(r / jnp.diagonal(r)[None, :], 1) + jnp.eye(h.shape[0], dtype=h.dtype)

    def bad(state: tuple[Array, Array, Array]) -> Array:
        _, u, tries = state
        return (tries <= _TRIES) & ~jnp.isfinite(u).all()

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        damping, _, tries = state
        taken = jnp.where(tries > 0, jnp.maximum(damping * _MORE_DAMPING, 1e-6), damping)
        return taken, factor(taken), tries + 1

    # The first try is in the loop too: the factorization is compiled once.
    none = (jnp.asarray(damping, jnp.float32), jnp.full(h.shape, jnp.nan, jnp.float32), jnp.zeros((), jnp.int32))
    taken, u, _ = jax.lax.while_loop(bad, again, none)
    return jnp.where(jnp.isfinite(u).all(), u, jnp.eye(h.shape[0])), taken


@jit
def compensated_share(h: Float[Array, "c_in c_in"], damping: float | Float[Array, ""]) -> Float[Array, ""]:
    """The share of rounding's output error that GPTQ leaves, were all errors of one size: ``tr D / tr H``.

    ``H = U D U'`` as in `feedback`, rows in GPTQ's order; 1 where that cannot be factored.

    Example:
        >>> round(float(compensated_share(jnp.array([[4.0, 2.0], [2.0, 4.0]]), 0.0)), 6)
        0.875
    """
    h = h.astype(jnp.float32)
    order = jnp.argsort(-jnp.diagonal(h), stable=True)
    damped = damp(h[order][:, order], damping)
    r = jnp.linalg.cholesky(damped[::-1, ::-1])
    share = jnp.sum(jnp.square(jnp.diagonal(r))) / jnp.trace(damped)
    return jnp.where(jnp.isfinite(share), share, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factored:
    """A second moment as GPTQ needs it: the same for all weights that multiply the activation.

    Attributes:
        order: Rows in the order of falling ``diag H``.
        u: `feedback` of the rows in this order.
        damping: The damping that was taken.
    """

    order: Int[Array, "c_in"]
    u: Float[Array, "c_in c_in"]
    damping: Float[Array, ""]


@jit
def factor(h: Float[Array, "c_in c_in"], damping: float | Float[Array, ""]) -> Factored:
    """The order of the rows, and their `feedback`.

    Example:
        >>> found = factor(jnp.array([[2.0, 0.0], [0.0, 4.0]]), 0.0)
        >>> found.order.tolist(), found.u.tolist()
        ([1, 0], [[1.0, 0.0], [0.0, 1.0]])
    """
    order = jnp.argsort(-jnp.diagonal(h), stable=True)
    return Factored(order, *feedback(h[order][:, order], damping))


def gptq_round(
    w: Float[Array, "c_in c_out"],
    h: Float[Array, "c_in c_in"],
    scales: Scales,
    fmt: WeightFormat,
    damping: float | Float[Array, ""] = 0.05,
    descent_passes: int = 0,
) -> Float[Array, "c_in c_out"]:
    """Values of the format near ``w`` with a small output error ``tr(D' H D)``, ``D`` the difference.

    Rows are taken in the order of falling ``diag H`` (act-order), under the scales that they have (static groups).
    Costs about ``c_in^2 c_out`` operations and ``c_in^3`` once, and ``2 c_in^2 c_out`` for each sweep.

    Args:
        w: Weight.
        h: Second moment of the activation, symmetric. Zero rows are rounded to nearest.
        scales: Scales of the blocks.
        fmt: The format.
        damping: Added to the diagonal of ``h``, in units of its mean; see `feedback`.
        descent_passes: Passes of coordinate descent afterwards: each row is rounded anew given all others; none loses.
            Static under jit.

    Returns:
        Values that `fmt.encode` gives the codes of.

    Raises:
        JaxqError: the shapes do not fit, or the scales are another format's.

    Example:
        >>> from jaxq.formats.registry import IntegerFormat
        >>> x = jax.random.normal(jax.random.key(0), (64, 1)) + 0.1 * jax.random.normal(jax.random.key(1), (64, 8))
        >>> w = jax.random.normal(jax.random.key(2), (8, 4))
        >>> fmt = IntegerFormat(block_size=8)
        >>> found = gptq_round(w, x.T @ x / 64, fmt.find_scales(w), fmt) - w
        >>> nearest = fmt.round_trip(w) - w
        >>> bool(jnp.sum((x @ found) ** 2) < 0.5 * jnp.sum((x @ nearest) ** 2))
        True
    """
    check_moments(w, h)
    check_scales(w.shape, scales.s.shape, fmt.block_size, 0)
    _check_format(w, scales, fmt)
    return gptq_round_factored(w, h, factor(h, damping), scales, fmt, descent_passes)


def _check_format(w: Array, scales: Scales, fmt: WeightFormat) -> None:
    """Refuses scales that are not of a format's kind."""
    got, want = _kind(_arrays(scales)), _kind(_plain_scales.eval_shape(w, fmt))
    if got != want:
        raise JaxqError(
            f"the scales are {got}, those of {fmt.dtype} are {want}: take fmt.find_scales(w) or "
            "search_block_scales(w, h, fmt)"
        )


# jax's own jit, whose `eval_shape` type checkers see: only shapes and types are asked for, and traced once.
@partial(jax.jit, static_argnames="fmt")
def _plain_scales(w: Array, fmt: WeightFormat) -> list[Array | None]:
    return _arrays(fmt.find_scales(w))


def _arrays(scales: Scales) -> list[Array | None]:
    return [scales.s, scales.zp, scales.s2]


def _kind(parts: Sequence[jax.ShapeDtypeStruct | Array | None]) -> str:
    """Numbers of any width, or a type that holds nothing else; and what goes with them."""
    s, zp, s2 = parts
    assert s is not None
    kind = "floats" if s.dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64) else str(s.dtype)
    return f"{kind}{' over a second scale' * (s2 is not None)}{' with' if zp is not None else ' without'} zero points"


def gptq_round_factored(
    w: Float[Array, "c_in c_out"],
    h: Float[Array, "c_in c_in"],
    factored: Factored,
    scales: Scales,
    fmt: WeightFormat,
    descent_passes: int = 0,
) -> Float[Array, "c_in c_out"]:
    """`gptq_round` for one of several weights that share a moment, factored before (`factor`)."""
    values = _compensate(w, factored, scales, fmt)
    return _refine(w, values, h, factored, scales, fmt, descent_passes) if descent_passes else values


@jit(static_argnames="fmt")
def _compensate(w: Array, factored: Factored, scales: Scales, fmt: WeightFormat) -> Array:
    w, order = w.astype(jnp.float32), factored.order
    grid = jax.tree.map(lambda x: x[order], fmt.grid(scales, w.shape[0]))
    return _round_rows(w[order], factored.u, grid, fmt)[jnp.argsort(order)]


@jit(static_argnames="fmt")
def _refine(
    w: Array,
    values: Array,
    h: Array,
    factored: Factored,
    scales: Scales,
    fmt: WeightFormat,
    descent_passes: int | Array,
) -> Array:
    w, order = w.astype(jnp.float32), factored.order
    grid = jax.tree.map(lambda x: x[order], fmt.grid(scales, w.shape[0]))
    damped = damp(h.astype(jnp.float32)[order][:, order], factored.damping)
    return _descend(w[order], values[order], damped, grid, fmt, descent_passes)[jnp.argsort(order)]


def _round_rows(w: Array, u: Array, grid: Grid, fmt: WeightFormat) -> Array:
    """Row after row, panel by panel: what a row hears of the panels before its own is one product."""
    (w, grid), u, count = _fill((w, grid), u)

    def panel(i: Int[Array, ""], errors: Array) -> Array:
        start = i * _PANEL
        own, rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, _PANEL), (w, grid))
        across = jax.lax.dynamic_slice_in_dim(u, start, _PANEL, axis=1)
        inner = jax.lax.dynamic_slice_in_dim(across, start, _PANEL)
        heard = own + jnp.matmul(across.T, errors, precision=Precision.HIGHEST)

        def row(j: Int[Array, ""], found: Array) -> Array:
            value = fmt.round_to(
                heard[j] + jnp.matmul(inner[:, j], found, precision=Precision.HIGHEST),
                jax.tree.map(lambda x: x[j], rows),
            )
            return found.at[j].set(own[j] - value)

        found = jax.lax.fori_loop(0, _PANEL, row, jnp.zeros_like(own))
        return jax.lax.dynamic_update_slice_in_dim(errors, found, start, axis=0)

    errors = jax.lax.fori_loop(0, w.shape[0] // _PANEL, panel, jnp.zeros_like(w))
    return fmt.round_to(w - errors, grid)[:count]


def _descend(w: Array, values: Array, h: Array, grid: Grid, fmt: WeightFormat, descent_passes: int | Array) -> Array:
    """Coordinate descent: row after row takes the value that is best given the others."""
    (w, values, grid), h, count = _fill((w, values, grid), h)
    slope = jnp.matmul(h, values - w, precision=Precision.HIGHEST)

    def panel(i: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        values, slope = state
        start = (i * _PANEL) % w.shape[0]
        own, near, rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, _PANEL), (values, slope, grid))
        across = jax.lax.dynamic_slice_in_dim(h, start, _PANEL)
        inner = jax.lax.dynamic_slice_in_dim(across, start, _PANEL, axis=1)

        def row(j: Int[Array, ""], moved: Array) -> Array:
            slope = near[j] + jnp.matmul(inner[j], moved, precision=Precision.HIGHEST)
            value = fmt.round_to(own[j] - slope / inner[j, j], jax.tree.map(lambda x: x[j], rows))
            return moved.at[j].set(value - own[j])

        moved = jax.lax.fori_loop(0, _PANEL, row, jnp.zeros_like(own))
        slope = slope + jnp.matmul(across.T, moved, precision=Precision.HIGHEST)
        return jax.lax.dynamic_update_slice_in_dim(values, own + moved, start, axis=0), slope

    values, _ = jax.lax.fori_loop(0, descent_passes * (w.shape[0] // _PANEL), panel, (values, slope))
    return values[:count]


def _fill(rows: Rows, square: Array) -> tuple[Rows, Array, int]:
    """Arrays of rows, and a square one, filled up to whole panels with rows that stand for nothing."""
    count = square.shape[0]
    more = -count % _PANEL
    filled = jax.tree.map(lambda x: jnp.pad(x, ((0, more), (0, 0)), constant_values=1), rows)
    unit = (jnp.arange(count + more) >= count).astype(square.dtype)
    return filled, jnp.pad(square, ((0, more), (0, more))) + jnp.diag(unit), count
