"""The MX functions of ModelOpt's ``quant_utils`` page: greatest magnitudes of blocks, and their E8M0 exponents."""

import math

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxq.errors import JaxqError
from jaxq.modelopt.arrays import AnyArray, as_floats, as_given, check_block_size, check_integer
from jaxq.numerics import float4, mx
from jaxq.numerics.blocks import check_axis, count_blocks, split
from jaxq.numerics.jit import jit


def get_amax(weight: Float[AnyArray, "..."], quant_axis: int, block_size: int) -> Float[AnyArray, "..."]:
    """Greatest magnitude of each block of consecutive elements on the axis: ``max|block|``.

    Args:
        weight: Weight of 2 or 3 dimensions, of floats or integers.
        quant_axis: The axis that is split into blocks: 0 or 1 of two, 1 or 2 of three; -1 is the last.
        block_size: Elements a block, or -1 for the whole axis; the last block may be ragged.

    Returns:
        One number for each block in ``weight``'s dtype (float32 for integers), in the order of the blocks: flat for a
        matrix, ``[d0, d1 * n_blocks]`` or ``[d0 * n_blocks, d2]`` for three dimensions. `compute_e8m0` takes this
        layout.

    Raises:
        JaxqError: the weight has another rank or the axis is another one, or ``block_size`` is 0 or below -1.

    Source: NVIDIA ModelOpt's ``quant_utils.get_amax``, whose blocks on axis 0 are not of consecutive rows.

    Example:
        >>> import numpy as np
        >>> get_amax(np.array([[1.0], [-2.0], [3.0], [0.0]], np.float32), 0, 2).tolist()
        [2.0, 3.0]
    """
    x = jnp.asarray(as_floats(weight))
    axis = _e8m0_axis(x.ndim, check_integer("quant_axis", quant_axis))
    amax = _block_amax(x, check_block_size(x.shape[axis], block_size), axis)
    if amax.ndim == 2:
        return as_given(amax.ravel(), weight)
    shape = (amax.shape[0], -1) if axis == 2 else (-1, amax.shape[2])
    return as_given(amax.reshape(shape), weight)


@jit(static_argnames=("block_size", "axis"))
def _block_amax(w: Array, block_size: int, axis: int) -> Array:
    return jnp.max(jnp.abs(split(w, block_size, axis)), axis=axis + 1)


def _e8m0_axis(rank: int, axis: int) -> int:
    """The axis as a non-negative number; raises an error for an axis that these functions cannot split."""
    axes = {2: (0, 1), 3: (1, 2)}.get(rank)
    if axes is None:
        raise JaxqError(f"the weight has {rank} dimensions: give one of 2 or 3")
    positive_axis = check_axis(rank, axis)
    if positive_axis not in axes:
        raise JaxqError(
            f"quant_axis is {axis}: blocks of a weight of {rank} dimensions lie on axis {axes[0]} or {axes[1]}"
        )
    return positive_axis


def compute_e8m0(
    amax: Float[AnyArray, "..."], weight_shape: tuple[int, ...], quant_axis: int, block_size: int
) -> Float[AnyArray, "..."]:
    """Biased exponents of MX blocks of E4M3: ``ceil(log2(amax / 448)) + 127``, at least 0; 0 for a block of zeros.

    The exponents are exact, without a logarithm: ``log2`` in float32 rounds to the exponent below for numbers just
    above ``448 * 2^k``, and such a block would saturate.

    Args:
        amax: Result of `get_amax` for the weight, finite.
        weight_shape: The weight's shape, of 2 or 3 dimensions.
        quant_axis: The axis that is split into blocks; see `get_amax`.
        block_size: Elements a block, or -1; the last block may be ragged.

    Returns:
        Exponents as float32, whole numbers of 0 to 255, in ``weight_shape`` with ``n_blocks`` in place of the axis.

    Raises:
        JaxqError: the weight has another rank or the axis is another one; ``amax`` has not one number for each block,
            or a negative or infinite number or NaN (not checked inside `jax.jit`).

    Source: OCP Microscaling Formats (MX) specification 1.0; NVIDIA ModelOpt's ``quant_utils.compute_e8m0``.

    Example:
        >>> import numpy as np
        >>> compute_e8m0(np.array([448.0, 449.0, 0.0], np.float32), (1, 6), 1, 2).tolist()
        [[127.0, 128.0, 0.0]]
    """
    axis = _e8m0_axis(len(weight_shape), quant_axis)
    blocks = count_blocks(weight_shape[axis], block_size)
    shape = (*weight_shape[:axis], blocks, *weight_shape[axis + 1 :])
    x = jnp.asarray(as_floats(amax, "amax"))
    if x.size != math.prod(shape):
        raise JaxqError(
            f"amax has shape {list(x.shape)}: a weight of shape {list(weight_shape)} has {math.prod(shape)} blocks"
        )
    valid = jnp.all(jnp.isfinite(x) & (x >= 0))
    if not isinstance(valid, Tracer) and not valid:
        raise JaxqError("amax has a negative or infinite number or NaN: give greatest magnitudes")
    biased = mx.shared_exponent(x, float4.E4M3_MAX) + mx.E8M0_BIAS
    return as_given(biased.astype(jnp.float32).reshape(shape), amax)
