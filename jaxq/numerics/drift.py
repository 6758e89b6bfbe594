"""Drift: the distance between the activations of the quantized model and those of the float model.

`jaxq.methods.targets` corrects weights for it.

Source of the method: asymmetric calibration for GPTQ, such as Li et al., "GPTAQ" (arXiv:2504.02692). Here the whole
weight is solved for at once, and a layer that ends in a residual sum aims at the float model's sum.
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
    """Products over tokens of the quantized model's activation ``X'`` and the drift ``X - X'``.

    ``X`` is the float model's activation; ``X''`` is ``X'`` transposed.

    Attributes:
        input: ``X''(X - X') / tokens``.
        outputs: For each sibling ``X''(R - R') / tokens``, ``R`` being the residual stream that the sibling's product
            is added to; None for a sibling whose product is added to nothing.
    """

    input: Float[Array, "c_in c_in"]
    outputs: tuple[Float[Array, "c_in _"] | None, ...]


@jit
def drift_product(
    x: Float[Array, "tokens c_in"], difference: Float[Array, "tokens c"], keep: Float[Array, "tokens"]
) -> Float[Array, "c_in c"]:
    """``X'' difference``, summed over the real tokens, float32.

    Args:
        x: Activation ``X'`` of the quantized model.
        difference: The float model's activation, or residual stream, minus the quantized model's.
        keep: 1 for a real token, 0 for padding; padding may hold anything, NaN included.

    Example:
        >>> x, difference = jnp.array([[1.0, 2.0], [9.0, 9.0]]), jnp.array([[0.5], [jnp.nan]])
        >>> drift_product(x, difference, jnp.array([1.0, 0.0])).tolist()
        [[0.5], [1.0]]
    """
    real = keep[:, None] > 0
    x, difference = (jnp.where(real, a.astype(jnp.float32), 0) for a in (x, difference))
    return jnp.dot(x.T, difference, precision=Precision.HIGHEST)
