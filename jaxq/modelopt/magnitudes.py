"""Mean magnitudes of activations and weights by input channel: the two numbers that AWQ's scale is made of."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxq.errors import JaxqError
from jaxq.methods.awq import weight_magnitude
from jaxq.modelopt.arrays import AnyArray, as_floats, as_given, check_block_size
from jaxq.numerics.jit import jit


def mean_magnitude(x: Float[AnyArray, "... c_in"]) -> Float[AnyArray, "c_in"]:
    """Mean of ``|x|`` over all axes but the last, in float32.

    Raises:
        JaxqError: ``x`` is a single number.

    Example:
        >>> mean_magnitude([[1.0, -2.0], [-3.0, 0.0]]).tolist()
        [2.0, 1.0]
    """
    x = as_floats(x, "the activation")
    if x.ndim == 0:
        raise JaxqError("the activation is a single number: give [tokens, c_in]")
    return as_given(_mean_magnitude(jnp.asarray(x)), x)


@jit
def _mean_magnitude(x: Array) -> Array:
    return jnp.mean(jnp.abs(x.reshape(-1, x.shape[-1]).astype(jnp.float32)), axis=0)


def channel_magnitude(weights: Sequence[AnyArray], block_size: int) -> Float[AnyArray, "c_in"]:
    """`jaxq.methods.awq.weight_magnitude` of weights that share an input, concatenated along ``c_out``.

    Args:
        weights: Weights [c_in, c_out], at least one.
        block_size: Rows a block, or -1.

    Example:
        >>> import numpy as np
        >>> channel_magnitude([np.array([[1.0], [2.0]]), np.array([[2.0], [1.0]])], 2).tolist()
        [0.75, 0.75]
    """
    block_size = check_block_size(weights[0].shape[0], block_size)
    arrays = [jnp.asarray(as_floats(w)) for w in weights]
    joined = jnp.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0]
    return as_given(weight_magnitude(joined, block_size), *weights)


def check_matrix(w: Any) -> AnyArray:
    """The weight as an array of floats [c_in, c_out].

    Raises:
        JaxqError: the weight has another number of dimensions than two, or no numbers.
    """
    array = as_floats(w)
    if array.ndim != 2:
        raise JaxqError(f"the weight has shape {list(array.shape)}: give a matrix [c_in, c_out]")
    return array


def check_same_channels(act: tuple[int, ...], weight: tuple[int, ...]) -> None:
    """Raise an error where the magnitudes of an activation and of a weight differ in shape."""
    if act != weight:
        raise JaxqError(
            f"the activation's magnitudes have shape {list(act)} and the weight's {list(weight)}: both need [c_in]"
        )
