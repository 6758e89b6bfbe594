"""The weight that makes up for what quantized weights before it changed."""

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
    drift_out: Float[Array, "c_in c_out"],
    ridge: float | Float[Array, ""],
) -> Float[Array, "c_in c_out"]:
    """The weight with which the quantized model's activation gives the float model's output, as nearly as may be.

    ``argmin_T ||X' T - (X W + R - R')||^2 / tokens + ridge mean(diag H) ||T - W||^2``, that is
    ``W + (H + ridge mean(diag H) I)^-1 (X''(X - X') W + X''(R - R')) / tokens``; ``W`` where that cannot be solved.

    Args:
        w: Weight.
        h: Second moment of the quantized model's activation ``X'``.
        drift_in: `Drift.input`.
        drift_out: `Drift.outputs`, side by side; zeros where there are none.
        ridge: How much the weight is held to what it was: few tokens need more.

    Example:
        >>> h = jnp.eye(2)
        >>> corrected_target(jnp.ones((2, 1)), h, 0.5 * jnp.eye(2), jnp.zeros((2, 1)), 0.0).tolist()
        [[1.5], [1.5]]
    """
    w = w.astype(jnp.float32)
    wanted = jnp.matmul(drift_in, w, precision=Precision.HIGHEST) + drift_out
    target = w + jax.scipy.linalg.solve(damp(h, ridge), wanted, assume_a="pos")
    return jnp.where(jnp.isfinite(target).all(), target, w)
