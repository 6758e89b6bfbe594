"""GPTQ: round row by row, and let each row compensate for the rounding errors of the rows before it.

Source of the method: Frantar et al., "GPTQ: Accurate Post-Training Quantization" (arXiv:2210.17323), with scales of the
blocks that are fixed beforehand. Coordinate descent on the same loss can follow, as in Behdin et al., "QuantEase"
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
from jaxq.formats.base import Grid, Scales, check_format, check_scales_object
from jaxq.formats.registry import WeightFormat
from jaxq.numerics import checks
from jaxq.numerics.integer import check_scales
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import check_moments
from jaxq.numerics.sharding import whole

Rows = TypeVar("Rows")

_PANEL = 128
"""Rows a panel: the rows of later panels are compensated by one product once the whole panel is rounded."""

_DAMPING_FACTOR = 10.0
_RETRIES = 6


@jit(checks={"h": checks.square, "damping": checks.number})
def damp(h: Float[Array, "c_in c_in"], damping: float | Float[Array, ""]) -> Float[Array, "c_in c_in"]:
    """``H + damping mean(diag H) I``; the identity where ``H`` is zero.

    Example:
        >>> damp(jnp.array([[1.0, 0.0], [0.0, 3.0]]), 0.5).tolist()
        [[2.0, 0.0], [0.0, 4.0]]
    """
    h = whole(h)
    mean = jnp.mean(jnp.diagonal(h))
    return h + jnp.where(mean > 0, damping * mean, 1.0) * jnp.eye(h.shape[0], dtype=h.dtype)


@jit
def feedback(
    h: Float[Array, "c_in c_in"], damping: float | Float[Array, ""]
) -> tuple[Float[Array, "c_in c_in"], Float[Array, ""]]:
    """Factors of earlier rows' errors: the unit upper triangular ``U`` of ``U D U' = H + damping mean(diag H) I``.

    Row ``j`` is best rounded at ``w_j + sum_(i<j) U_ij E_i``, ``E_i`` being the errors of earlier rows.

    Args:
        h: Second moment, rows in GPTQ's order.
        damping: Added to the diagonal, in units of its mean. Where the damped ``H`` is not positive definite in float32
            the damping grows tenfold, to 1e-6 at least, up to six times.

    Returns:
        ``U``, or the identity where no damping helped (``H`` is not finite); and the damping that was added.

    Example:
        >>> u, damping = feedback(jnp.array([[5.0, 2.0], [2.0, 4.0]]), 0.0)
        >>> u.tolist(), float(damping)
        ([[1.0, 0.5], [0.0, 1.0]], 0.0)
    """
    h = h.astype(jnp.float32)

    def factor(damping: Array) -> Array:
        # H = R R' with an upper triangular R: Cholesky's lower factor of H with rows and columns reversed.
        r = jnp.linalg.cholesky(damp(h, damping)[::-1, ::-1])[::-1, ::-1]
        return jnp.triu(r / jnp.diagonal(r)[None, :], 1) + jnp.eye(h.shape[0], dtype=h.dtype)

    def failed(state: tuple[Array, Array, Array]) -> Array:
        _, u, tries = state
        return (tries <= _RETRIES) & ~jnp.isfinite(u).all()

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        damping, _, tries = state
        # The caller's damping first; then tenfold each time, from 1e-6 where that was 0.
        damping = jnp.where(tries > 0, jnp.maximum(damping * _DAMPING_FACTOR, 1e-6), damping)
        return damping, factor(damping), tries + 1

    # The first attempt is in the loop too, so that the factorization is compiled once.
    start = (jnp.asarray(damping, jnp.float32), jnp.full(h.shape, jnp.nan, jnp.float32), jnp.zeros((), jnp.int32))
    damping, u, _ = jax.lax.while_loop(failed, attempt, start)
    return jnp.where(jnp.isfinite(u).all(), u, jnp.eye(h.shape[0])), damping


@jit
def compensated_share(h: Float[Array, "c_in c_in"], damping: float | Float[Array, ""]) -> Float[Array, ""]:
    """Ratio of GPTQ's output error to that of rounding, for rounding errors of equal size: ``tr D / tr H``.

    ``H = U D U'`` as in `feedback`, rows in GPTQ's order. The ratio is 1 where the damped ``H`` cannot be factored.

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
    """A second moment factored for GPTQ; all weights that multiply the activation share it.

    Attributes:
        order: Indices of the rows in the order of falling ``diag H``.
        u: ``U`` of `feedback`, for rows in this order.
        damping: The damping that `feedback` added.
    """

    order: Int[Array, "c_in"]
    u: Float[Array, "c_in c_in"]
    damping: Float[Array, ""]


@jit
def factor(h: Float[Array, "c_in c_in"], damping: float | Float[Array, ""]) -> Factored:
    """Factor a second moment for GPTQ: the order of the rows, and their `feedback`.

    Example:
        >>> factored = factor(jnp.array([[2.0, 0.0], [0.0, 4.0]]), 0.0)
        >>> factored.order.tolist(), factored.u.tolist()
        ([1, 0], [[1.0, 0.0], [0.0, 1.0]])
    """
    h = whole(h)
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
    """Rounds a weight with GPTQ, for a small output error ``tr(D' H D)`` of the difference ``D`` from the weight.

    Rows are rounded from the largest ``diag H`` to the smallest (act-order). The scales stay fixed (static groups).
    Costs about ``c_in^2 c_out`` operations, ``c_in^3`` for the factorization, and ``2 c_in^2 c_out`` for each pass of
    descent.

    Args:
        w: Weight.
        h: Second moment of the activation, symmetric. Zero rows are rounded to nearest.
        scales: Scales of the blocks.
        fmt: The format.
        damping: Added to the diagonal of ``h``, in units of its mean; see `feedback`.
        descent_passes: Passes of coordinate descent after GPTQ. Each rounds every row again, with all others fixed.
            No pass increases the output error. Static under jit.

    Returns:
        Values of the format; `fmt.encode` gives their codes.

    Raises:
        JaxqError: the shapes do not fit each other, the scales are of another format, or the weight is not finite.

    Example:
        >>> from jaxq.formats.registry import IntegerFormat
        >>> x = jax.random.normal(jax.random.key(0), (64, 1)) + 0.1 * jax.random.normal(jax.random.key(1), (64, 8))
        >>> w = jax.random.normal(jax.random.key(2), (8, 4))
        >>> fmt = IntegerFormat(block_size=8)
        >>> gptq_error = gptq_round(w, x.T @ x / 64, fmt.plain_scales(w), fmt) - w
        >>> rtn_error = fmt.round_trip(w) - w
        >>> bool(jnp.sum((x @ gptq_error) ** 2) < 0.5 * jnp.sum((x @ rtn_error) ** 2))
        True
    """
    check_format("fmt", fmt)
    check_scales_object("scales", scales)
    checks.weight("w", w)
    checks.number("damping", damping)
    checks.whole_number("descent_passes", descent_passes)
    check_moments(w, h)
    check_scales(w.shape, scales.s.shape, fmt.block_size, 0)
    _check_format(w, scales, fmt)
    return gptq_round_factored(w, h, factor(h, damping), scales, fmt, descent_passes)


def _check_format(w: Array, scales: Scales, fmt: WeightFormat) -> None:
    """Refuses scales of another kind than the format has."""
    given, expected = _kind(_arrays(scales)), _kind(_plain_scales.eval_shape(w, fmt))
    if given != expected:
        raise JaxqError(
            f"the scales are {given}, those of {fmt.dtype} are {expected}: take fmt.plain_scales(w) or "
            "search_block_scales(w, h, fmt)"
        )


# jax's own jit, whose `eval_shape` type checkers see: only shapes and types are asked for, and traced once.
@partial(jax.jit, static_argnames="fmt")
def _plain_scales(w: Array, fmt: WeightFormat) -> list[Array | None]:
    return _arrays(fmt.plain_scales(w))


def _arrays(scales: Scales) -> list[Array | None]:
    return [scales.s, scales.zp, scales.s2]


def _kind(arrays: Sequence[jax.ShapeDtypeStruct | Array | None]) -> str:
    """The kind of scales in words: floats of any width are alike, and other dtypes are not."""
    s, zp, s2 = arrays
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
    """`gptq_round` under a moment that is factored already (`factor`), for weights that share it."""
    values = _compensate(w, factored, scales, fmt)
    return _refine(w, values, h, factored, scales, fmt, descent_passes) if descent_passes else values


@jit(static_argnames="fmt")
def _compensate(w: Array, factored: Factored, scales: Scales, fmt: WeightFormat) -> Array:
    """GPTQ's values, rows in the order of the weight."""
    w, order = whole(w.astype(jnp.float32), 0), factored.order
    # The grid goes along with its rows: neighbours in GPTQ's order are of different blocks.
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
    """Values after coordinate descent, rows in the order of the weight."""
    w, values, h, order = whole(w.astype(jnp.float32), 0), whole(values, 0), whole(h), factored.order
    grid = jax.tree.map(lambda x: x[order], fmt.grid(scales, w.shape[0]))
    # The loss that descent lowers is the one that GPTQ compensated under, so its damping is the same.
    damped = damp(h.astype(jnp.float32)[order][:, order], factored.damping)
    return _descend(w[order], values[order], damped, grid, fmt, descent_passes)[jnp.argsort(order)]


def _round_rows(w: Array, u: Array, grid: Grid, fmt: WeightFormat) -> Array:
    """Values of the grid by GPTQ, rows in the order of ``u``.

    The compensation for a row is a sum over all rows before it: one product for the rows of earlier panels, and one a
    row for those of the same panel.
    """
    (w, grid), u, c_in = _pad_to_panels((w, grid), u)

    def panel(i: Int[Array, ""], errors: Array) -> Array:
        # The panel's rows of the weight and of the grid, and the columns of U that belong to them.
        start = i * _PANEL
        w_panel, grid_panel = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, _PANEL), (w, grid))
        u_columns = jax.lax.dynamic_slice_in_dim(u, start, _PANEL, axis=1)
        u_panel = jax.lax.dynamic_slice_in_dim(u_columns, start, _PANEL)

        # One large product compensates for all earlier panels; rows not yet rounded have errors of zero.
        compensated = w_panel + jnp.matmul(u_columns.T, errors, precision=Precision.HIGHEST)

        def row(j: Int[Array, ""], panel_errors: Array) -> Array:
            # Earlier rows of the panel need compensation too, each as soon as it is rounded.
            value = fmt.round_to(
                compensated[j] + jnp.matmul(u_panel[:, j], panel_errors, precision=Precision.HIGHEST),
                jax.tree.map(lambda x: x[j], grid_panel),
            )
            return panel_errors.at[j].set(w_panel[j] - value)

        panel_errors = jax.lax.fori_loop(0, _PANEL, row, jnp.zeros_like(w_panel))
        return jax.lax.dynamic_update_slice_in_dim(errors, panel_errors, start, axis=0)

    errors = jax.lax.fori_loop(0, w.shape[0] // _PANEL, panel, jnp.zeros_like(w))
    # `w - errors` is a value of the grid up to float32's rounding: rounding once more makes it exact.
    return fmt.round_to(w - errors, grid)[:c_in]


def _descend(w: Array, values: Array, h: Array, grid: Grid, fmt: WeightFormat, descent_passes: int | Array) -> Array:
    """Coordinate descent: each row in turn takes the value of the grid that is best given all other rows."""
    (w, values, grid), h, c_in = _pad_to_panels((w, values, grid), h)
    # Half the gradient of tr(D' H D) with respect to the values, for all rows.
    slope = jnp.matmul(h, values - w, precision=Precision.HIGHEST)

    def panel(i: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        # `i` counts the panels of all passes; each pass begins at the first row again.
        values, slope = state
        start = (i * _PANEL) % w.shape[0]
        values_panel, slope_panel, grid_panel = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, _PANEL), (values, slope, grid)
        )
        h_rows = jax.lax.dynamic_slice_in_dim(h, start, _PANEL)
        h_panel = jax.lax.dynamic_slice_in_dim(h_rows, start, _PANEL, axis=1)

        def row(j: Int[Array, ""], moves: Array) -> Array:
            # The panel's slope is from before its first row: add the moves of the rows since.
            row_slope = slope_panel[j] + jnp.matmul(h_panel[j], moves, precision=Precision.HIGHEST)
            # The loss is a parabola in this row, so its least value on the grid is next to its minimum.
            value = fmt.round_to(values_panel[j] - row_slope / h_panel[j, j], jax.tree.map(lambda x: x[j], grid_panel))
            return moves.at[j].set(value - values_panel[j])

        moves = jax.lax.fori_loop(0, _PANEL, row, jnp.zeros_like(values_panel))
        # The moves change the slope of every row of the matrix: one large product a panel.
        slope = slope + jnp.matmul(h_rows.T, moves, precision=Precision.HIGHEST)
        return jax.lax.dynamic_update_slice_in_dim(values, values_panel + moves, start, axis=0), slope

    values, _ = jax.lax.fori_loop(0, descent_passes * (w.shape[0] // _PANEL), panel, (values, slope))
    return values[:c_in]


def _pad_to_panels(rows: Rows, square: Array) -> tuple[Rows, Array, int]:
    """Arrays of rows and a square matrix padded to whole panels, and the number of rows before.

    The padding is uncoupled (rows of the identity), so that no other row depends on it, and 1 in the arrays, so that
    steps of a grid are not 0.
    """
    c_in = square.shape[0]
    padding = -c_in % _PANEL
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, padding), (0, 0)), constant_values=1), rows)
    is_padding = (jnp.arange(c_in + padding) >= c_in).astype(square.dtype)
    return padded, jnp.pad(square, ((0, padding), (0, padding))) + jnp.diag(is_padding), c_in
