"""How far activations have drifted behind quantized weights, and the weight that makes up for it.

Source of the method: the published asymmetric calibrations of GPTQ, such as Li et al., "GPTAQ" (arXiv:2504.02692), here
solved for the whole weight at once; the target of a layer that ends in a residual sum is the float model's sum.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from jaxq.numerics.jit import jit


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


@jit
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
