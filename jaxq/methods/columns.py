"""Work on a wide weight some columns at a time, so that no step needs copies of the whole, as of a head's."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxq.numerics.jit import jit

Result = TypeVar("Result")

MAX_NUMBERS = 1 << 25
"""Numbers of a weight that are worked on at a time: 128 MiB in float32, of which a search holds about ten copies."""


def map_columns(
    function: Callable[..., Result], *arrays: object, anchor: Int[Array, ""] | int, most: int = MAX_NUMBERS
) -> Result:
    """``function(*arrays)`` for a function of each column, with as many columns at a time as ``most`` numbers have.

    Every run has the same number of columns, so that the function compiles once: the last ones overlap. The column
    ``anchor`` is in each run as well: formats with a scale of the whole weight find the same scale in each.

    Args:
        function: Takes trees of arrays ``[..., columns]``, and returns one. Numbers without axes do not depend on the
            columns.
        arrays: The trees; the first array is the weight [c_in, columns].
        anchor: The column with the greatest magnitude.
        most: Numbers of the weight in a run.

    Example:
        >>> w = jnp.arange(10.0).reshape(2, 5)
        >>> map_columns(lambda w: (jnp.max(w), 2 * w), w, anchor=4, most=4)[1].tolist()
        [[0.0, 2.0, 4.0, 6.0, 8.0], [10.0, 12.0, 14.0, 16.0, 18.0]]
    """
    c_in, columns = jax.tree.leaves(arrays)[0].shape
    runs = -(-c_in * columns // max(most, c_in))
    if runs == 1:
        return function(*arrays)
    width = -(-columns // runs)
    results = []
    for done in range(0, columns, width):
        start = min(done, columns - width)
        result = function(*_with_anchor(arrays, start, anchor, width))
        results.append(_columns(result, done - start, width))
    return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=-1) if xs[0].ndim else xs[0], *results)


@jit
def peak_column(w: Float[Array, "c_in c_out"], s: Float[Array, "c_in"]) -> Int[Array, ""]:
    """The column of ``w`` times ``s`` with the greatest magnitude."""
    scaled = w.astype(jnp.float32) * s[:, None]
    return jnp.argmax(jnp.maximum(jnp.max(scaled, axis=0), -jnp.min(scaled, axis=0)))


@jit(static_argnames="width")
def _with_anchor(arrays: Result, start: int | Array, anchor: int | Array, width: int) -> Result:
    """``width`` columns of each array from ``start`` on, and the column ``anchor`` behind them."""

    def chosen(x: Array) -> Array:
        if not x.ndim:
            return x
        columns = jax.lax.dynamic_slice_in_dim(x, start, width, axis=-1)
        return jnp.concatenate([columns, jax.lax.dynamic_slice_in_dim(x, anchor, 1, axis=-1)], axis=-1)

    return jax.tree.map(chosen, arrays)


def _columns(arrays: Result, start: int, stop: int) -> Result:
    return jax.tree.map(lambda x: x[..., start:stop] if x.ndim else x, arrays)
