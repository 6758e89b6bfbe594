"""The floating-point functions of ModelOpt's ``quant_utils`` page: NVFP4, and the exponents of MX."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxq.errors import JaxqError
from jaxq.modelopt.arrays import AnyArray, as_array, as_given, check_block_size, check_integer
from jaxq.numerics import float4, mx
from jaxq.numerics.blocks import check_axis, count_blocks, split


def get_weights_scaling_factor_2(input: Float[AnyArray, "..."]) -> Float[AnyArray, ""]:
    """NVFP4's scale of a whole weight: ``max|w| / (6 * 448)``; 1 for zeros, and for weights below 3e-35.

    Args:
        input: Weight of any rank and float type, finite.

    Returns:
        The scale, a float32 scalar.

    Raises:
        JaxqError: a weight is not finite (looked for outside `jax.jit` only).

    Source: NVIDIA ModelOpt's ``quant_utils.get_weights_scaling_factor_2``.

    Example:
        >>> print(get_weights_scaling_factor_2(np.array([[2688.0, -1.0]], np.float32)))
        1.0
    """
    x = jnp.asarray(input)
    finite = jnp.all(jnp.isfinite(x))
    if not isinstance(finite, Tracer) and not finite:
        raise JaxqError("a weight is infinite or NaN: NVFP4 scales are for finite weights")
    return as_given(float4.tensor_scale(x), input)


def get_weights_scaling_factor(
    input: Float[AnyArray, "n k"], block_size: int, weights_scaling_factor_2: ArrayLike
) -> Float[AnyArray, "n n_blocks"]:
    """NVFP4's block scales before they are rounded to E4M3: ``max|block| / (6 * s2)``; 1 for a block of zeros.

    Blocks lie along the last axis. `jaxq.numerics.float4.round_e4m3` gives the float8 scales that a file stores.

    Args:
        input: Weight [n, k] of any float type: the transpose of ``[c_in, c_out]``.
        block_size: Columns a block, 16 in NVFP4, or -1 for all; the last block may be ragged.
        weights_scaling_factor_2: `get_weights_scaling_factor_2`, above 0.

    Returns:
        Scales [n, n_blocks] in float32.

    Raises:
        JaxqError: ``input`` is not a matrix, or ``block_size`` is 0 or below -1.

    Source: NVIDIA ModelOpt's ``quant_utils.get_weights_scaling_factor``.

    Example:
        >>> get_weights_scaling_factor(np.array([[3.0, -6.0, 0.0, 0.0]], np.float32), 2, 0.5).tolist()
        [[2.0, 1.0]]
    """
    x = jnp.asarray(input)
    if x.ndim != 2:
        raise JaxqError(f"the weight has shape {list(x.shape)}: give a matrix [n, k], in blocks along k")
    s = float4.block_ratios(x, _scalar(weights_scaling_factor_2), block_size, axis=1)
    return as_given(s, input, weights_scaling_factor_2)


def _scalar(s2: Any) -> Float[Array, ""]:
    s2 = jnp.asarray(s2, jnp.float32)
    if s2.size != 1:
        raise JaxqError(f"weights_scaling_factor_2 has shape {list(s2.shape)}: a weight has one such scale")
    return s2.reshape(())


def quantize(
    input: Float[AnyArray, "..."],
    block_size: int,
    weights_scaling_factor: Float[AnyArray, "..."],
    weights_scaling_factor_2: ArrayLike,
) -> Float[AnyArray, "..."]:
    """What NVFP4 rounds to E2M1: ``w / (s * s2)``, blocks along the last axis.

    `jaxq.numerics.float4.encode_e2m1` makes the codes of it.

    Args:
        input: Weight ``[n, k]`` or of any rank and float type.
        block_size: Columns a block, or -1; the last block may be ragged.
        weights_scaling_factor: Block scales ``[n, n_blocks]`` of any float type, float8 too; not 0.
        weights_scaling_factor_2: Scale of the weight, not 0.

    Returns:
        Numbers of ``input``'s shape in float32, not rounded.

    Raises:
        JaxqError: the block scales do not fit ``input``.

    Source: NVIDIA ModelOpt's ``quant_utils.quantize``.

    Example:
        >>> quantize(np.array([[3.0, -6.0]], np.float32), 2, np.array([[2.0]], np.float32), 0.5).tolist()
        [[3.0, -6.0]]
    """
    x, s = jnp.asarray(input), jnp.asarray(weights_scaling_factor)
    axis = check_axis(x.ndim, -1)
    want = (*x.shape[:axis], count_blocks(x.shape[axis], block_size))
    if s.shape != want:
        raise JaxqError(
            f"weights_scaling_factor has shape {list(s.shape)}: a weight of shape {list(x.shape)} "
            f"in blocks of {block_size} needs {list(want)}"
        )
    s2 = _scalar(weights_scaling_factor_2)
    quotient = float4.divide_by_scales(x, s.astype(jnp.float32), s2, block_size, axis)
    return as_given(quotient, input, weights_scaling_factor, weights_scaling_factor_2)


def get_amax(weight: Float[AnyArray, "..."], quant_axis: int, block_size: int) -> Float[AnyArray, "..."]:
    """Greatest magnitude of each block of consecutive elements on the axis: ``max|block|``.

    Args:
        weight: Weight of 2 or 3 dimensions.
        quant_axis: The axis that is split into blocks: 0 or 1 of two, 1 or 2 of three; -1 is the last.
        block_size: Elements a block, or -1 for the whole axis; the last block may be ragged.

    Returns:
        One number a block in ``weight``'s dtype, in the order of the blocks: flat for a matrix, ``[d0, d1 * n_blocks]``
        or ``[d0 * n_blocks, d2]`` for three dimensions; `compute_e8m0` takes it so.

    Raises:
        JaxqError: another rank or axis, or ``block_size`` is 0 or below -1.

    Source: NVIDIA ModelOpt's ``quant_utils.get_amax``, whose blocks on axis 0 are not of consecutive rows.

    Example:
        >>> get_amax(np.array([[1.0], [-2.0], [3.0], [0.0]], np.float32), 0, 2).tolist()
        [2.0, 3.0]
    """
    x = jnp.asarray(as_array(weight))
    axis = _e8m0_axis(x.ndim, check_integer("quant_axis", quant_axis))
    amax = _block_amax(x, check_block_size(x.shape[axis], block_size), axis)
    if amax.ndim == 2:
        return as_given(amax.ravel(), weight)
    shape = (amax.shape[0], -1) if axis == 2 else (-1, amax.shape[2])
    return as_given(amax.reshape(shape), weight)


@partial(jax.jit, static_argnames=("block_size", "axis"))
def _block_amax(w: Array, block_size: int, axis: int) -> Array:
    return jnp.max(jnp.abs(split(w, block_size, axis)), axis=axis + 1)


def _e8m0_axis(rank: int, axis: int) -> int:
    axes = {2: (0, 1), 3: (1, 2)}.get(rank)
    if axes is None:
        raise JaxqError(f"the weight has {rank} dimensions: give one of 2 or 3")
    found = check_axis(rank, axis)
    if found not in axes:
        raise JaxqError(
            f"quant_axis is {axis}: blocks of a weight of {rank} dimensions lie on axis {axes[0]} or {axes[1]}"
        )
    return found


def compute_e8m0(
    amax: Float[AnyArray, "..."], weight_shape: tuple[int, ...], quant_axis: int, block_size: int
) -> Float[AnyArray, "..."]:
    """Biased exponents of MX blocks of E4M3: ``ceil(log2(amax / 448)) + 127``, at least 0; 0 for a block of zeros.

    Exact, without a logarithm: in float32 ``log2`` rounds to the exponent below for numbers just above
    ``448 * 2^k``, and such a block would saturate.

    Args:
        amax: `get_amax` of the weight, finite.
        weight_shape: The weight's shape, of 2 or 3 dimensions.
        quant_axis: The axis that is split into blocks; see `get_amax`.
        block_size: Elements a block, or -1; the last block may be ragged.

    Returns:
        Exponents as float32, whole numbers of 0 to 255, in ``weight_shape`` with ``n_blocks`` in place of the axis.

    Raises:
        JaxqError: another rank or axis, a number of ``amax`` that does not fit, or (outside `jax.jit`) negative or not
            finite ones.

    Source: OCP Microscaling Formats (MX) specification 1.0; NVIDIA ModelOpt's ``quant_utils.compute_e8m0``.

    Example:
        >>> compute_e8m0(np.array([448.0, 449.0, 0.0], np.float32), (1, 6), 1, 2).tolist()
        [[127.0, 128.0, 0.0]]
    """
    axis = _e8m0_axis(len(weight_shape), quant_axis)
    blocks = count_blocks(weight_shape[axis], block_size)
    shape = (*weight_shape[:axis], blocks, *weight_shape[axis + 1 :])
    x = jnp.asarray(amax)
    if x.size != math.prod(shape):
        raise JaxqError(
            f"amax has shape {list(x.shape)}: a weight of shape {list(weight_shape)} has {math.prod(shape)} blocks"
        )
    valid = jnp.all(jnp.isfinite(x) & (x >= 0))
    if not isinstance(valid, Tracer) and not valid:
        raise JaxqError("amax holds a negative number, an infinite one or NaN: give greatest magnitudes")
    biased = mx.shared_exponent(x, float4.E4M3_MAX) + mx.E8M0_BIAS
    return as_given(biased.astype(jnp.float32).reshape(shape), amax)
