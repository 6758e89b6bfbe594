"""How far activations have drifted behind quantized weights, and the weight that makes up for it.

Source of the method: the published asymmetric calibrations of GPTQ, such as Li et al., "GPTAQ" (arXiv:2504.02692), here
solved for the whole weight at once; the target of a layer that ends in a residual sum is the float model's sum.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from jaxq.gptq import damp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drift:
    """Products of the quantized model's activation ``X'`` with what it lacks to the float model's ``X``, over tokens.

    Attributes:
        input: ``X''(X - X') / tokens``.
        outputs: For each sibling ``X''(R - R') / tokens``, ``R`` what its product is added to; None where that is
            nothing.
    """

    input: Float[Array, "c_in c_in"]
    outputs: tuple[Float[Array, "c_in _"] | None, ...]


@jax.jit
def drift_product(
    x: Float[Array, "tokens c_in"], lacking: Float[Array, "tokens c"], keep: Float[Array, "tokens"]
) -> Float[Array, "c_in c"]:
    """``X'' lacking`` over the tokens to keep, float32.

    Args:
        x: Activation of the quantized model.
        lacking: What the float model has more.
        keep: 1 for a real token, 0 for padding, which may hold anything.
    """
    real = keep[:, None] > 0
    x, lacking = (jnp.where(real, a.astype(jnp.float32), 0) for a in (x, lacking))
    return jnp.dot(x.T, lacking, precision=Precision.HIGHEST)


@jax.jit
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
