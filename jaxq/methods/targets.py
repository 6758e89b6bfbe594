"""Corrected targets: weights that compensate for the drift which quantized weights before them cause."""

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from jaxq.methods.gptq import damp
from jaxq.numerics.jit import jit


@jit
def corrected_target(
    w: Float[Array, "c_in c_out"],
    h: Float[Array, "c_in c_in"],
    drift_in: Float[Array, "c_in c_in"],
    drift_out: Float[Array, "c_in c_out"] | None,
    ridge: float | Float[Array, ""],
) -> Float[Array, "c_in c_out"]:
    """The weight ``T`` with which the quantized model's activation ``X'`` comes nearest to the float model's output.

    ``T`` minimises ``||X' T - (X W + R - R')||^2 / tokens + ridge mean(diag H) ||T - W||^2``, so
    ``T = W + (H + ridge mean(diag H) I)^-1 (X''(X - X') W + X''(R - R')) / tokens``. It is ``W`` where the
    system cannot be solved in float32.

    Args:
        w: Weight ``W``.
        h: Second moment of the quantized model's activation ``X'``.
        drift_in: `Drift.input`.
        drift_out: `Drift.outputs` of the siblings side by side; zeros for those that have none, or None
            where all have none.
        ridge: Penalty on the distance from ``W``, in units of the mean of ``diag H``; fewer tokens need a greater one.

    Example:
        >>> h = jnp.eye(2)
        >>> corrected_target(jnp.ones((2, 1)), h, 0.5 * jnp.eye(2), jnp.zeros((2, 1)), 0.0).tolist()
        [[1.5], [1.5]]
    """
    w = w.astype(jnp.float32)
    drift = jnp.matmul(drift_in, w, precision=Precision.HIGHEST)
    drift = drift if drift_out is None else drift + drift_out
    target = w + jax.scipy.linalg.solve(damp(h, ridge), drift, assume_a="pos")
    return jnp.where(jnp.isfinite(target).all(), target, w)
