"""The error measure of a tied weight, which is the head of a model and its table of embeddings too."""

from dataclasses import replace

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from jaxq.numerics.jit import jit
from jaxq.numerics.moments import Moments

_COLUMNS = 4096
"""Columns, evenly spaced, from which the two measures are brought to one scale."""


@jit(static_argnames="share")
def with_lookups(moments: Moments, w: Float[Array, "c_in c_out"], share: float = 1.0) -> Moments:
    """Moments under which the error of a tied weight counts twice: in the head's outputs, and in the rows looked up.

    An error ``D`` of the weight ``W`` makes the head's outputs wrong by ``tr(D'HD)``, and the rows that Gather looks up
    by ``||D||^2``. Each counts relative to the outputs and the rows themselves::

        tr(D'HD) / tr(W'HW) + share ||D||^2 / ||W||^2  ~  tr(D'(H + lambda I)D),  lambda = share tr(W'HW) / ||W||^2

    A token that is rare in the input is rare in the output too: its frequency would weigh both terms alike, and it
    decides nothing, since each column is searched on its own.

    Args:
        moments: Of the activation that the head multiplies.
        w: The weight; a column for each token.
        share: Weight of the rows looked up beside the outputs. 0 gives the head's moments.

    Example:
        >>> h, a = jnp.diag(jnp.array([4.0, 2.0])), jnp.ones(2)
        >>> with_lookups(Moments(h, a, jnp.array(8)), jnp.eye(2)).h.tolist()
        [[7.0, 0.0], [0.0, 5.0]]
    """
    columns = w[:, :: max(1, w.shape[1] // _COLUMNS)].astype(jnp.float32)
    outputs = jnp.sum(columns * jnp.matmul(moments.h, columns, precision=Precision.HIGHEST))
    rows = jnp.sum(columns * columns)
    scale = jnp.where(rows > 0, share * outputs / rows, 0.0)
    return replace(moments, h=moments.h + scale * jnp.eye(len(moments.h), dtype=jnp.float32))
