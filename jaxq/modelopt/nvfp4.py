"""The NVFP4 functions of ModelOpt's ``quant_utils`` page: its two levels of scales, and weights divided by them."""

from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxq.errors import JaxqError
from jaxq.modelopt.arrays import AnyArray, as_floats, as_given
from jaxq.numerics import float4
from jaxq.numerics.blocks import check_axis, count_blocks


def get_weights_scaling_factor_2(input: Float[AnyArray, "..."]) -> Float[AnyArray, ""]:
    """NVFP4's scale of a whole weight: ``max|w| / (6 * 448)``; 1 for a weight of zeros, or of numbers below 3e-35.

    Args:
        input: Weight of any rank, finite; floats or integers.

    Returns:
        The scale, a float32 scalar.

    Raises:
        JaxqError: a weight is not finite (not checked inside `jax.jit`).

    Source: NVIDIA ModelOpt's ``quant_utils.get_weights_scaling_factor_2``.

    Example:
        >>> import numpy as np
        >>> print(get_weights_scaling_factor_2(np.array([[2688.0, -1.0]], np.float32)))
        1.0
    """
    x = jnp.asarray(as_floats(input))
    finite = jnp.all(jnp.isfinite(x))
    if not isinstance(finite, Tracer) and not finite:
        raise JaxqError("a weight is infinite or NaN: give a weight of finite numbers")
    return as_given(float4.tensor_scale(x), input)


def get_weights_scaling_factor(
    input: Float[AnyArray, "n k"], block_size: int, weights_scaling_factor_2: ArrayLike
) -> Float[AnyArray, "n n_blocks"]:
    """NVFP4's block scales before they are rounded to E4M3: ``max|block| / (6 * s2)``; 1 for a block of zeros.

    Blocks lie along the last axis. `jaxq.numerics.float4.round_e4m3` rounds to the float8 scales that a file stores.

    Args:
        input: Weight [n, k] of floats or integers: the transpose of ``[c_in, c_out]``.
        block_size: Columns a block, 16 in NVFP4, or -1 for all; the last block may be ragged.
        weights_scaling_factor_2: Result of `get_weights_scaling_factor_2`, above 0.

    Returns:
        Scales [n, n_blocks] in float32.

    Raises:
        JaxqError: ``input`` is not a matrix, or ``block_size`` is 0 or below -1.

    Source: NVIDIA ModelOpt's ``quant_utils.get_weights_scaling_factor``.

    Example:
        >>> import numpy as np
        >>> get_weights_scaling_factor(np.array([[3.0, -6.0, 0.0, 0.0]], np.float32), 2, 0.5).tolist()
        [[2.0, 1.0]]
    """
    x = jnp.asarray(as_floats(input))
    if x.ndim != 2:
        raise JaxqError(f"the weight has shape {list(x.shape)}: give a matrix [n, k], in blocks along k")
    s = float4.block_ratios(x, _scalar(weights_scaling_factor_2), block_size, axis=1)
    return as_given(s, input, weights_scaling_factor_2)


def _scalar(s2: Any) -> Float[Array, ""]:
    """The scale of a weight, as an array without axes."""
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
    """Weights divided by NVFP4's scales, ``w / (s * s2)``, in blocks along the last axis; not rounded.

    `jaxq.numerics.float4.encode_e2m1` rounds the quotients to codes.

    Args:
        input: Weight ``[n, k]`` or of any rank; floats or integers.
        block_size: Columns a block, or -1; the last block may be ragged.
        weights_scaling_factor: Block scales ``[n, n_blocks]`` of any float type, float8 too; not 0.
        weights_scaling_factor_2: Scale of the weight, not 0.

    Returns:
        Quotients of ``input``'s shape in float32.

    Raises:
        JaxqError: the block scales do not fit ``input``.

    Source: NVIDIA ModelOpt's ``quant_utils.quantize``.

    Example:
        >>> import numpy as np
        >>> quantize(np.array([[3.0, -6.0]], np.float32), 2, np.array([[2.0]], np.float32), 0.5).tolist()
        [[3.0, -6.0]]
    """
    x, s = jnp.asarray(as_floats(input)), jnp.asarray(as_floats(weights_scaling_factor, "weights_scaling_factor"))
    axis = check_axis(x.ndim, -1)
    scales_shape = (*x.shape[:axis], count_blocks(x.shape[axis], block_size))
    if s.shape != scales_shape:
        raise JaxqError(
            f"weights_scaling_factor has shape {list(s.shape)}: a weight of shape {list(x.shape)} "
            f"in blocks of {block_size} needs {list(scales_shape)}"
        )
    s2 = _scalar(weights_scaling_factor_2)
    quotient = float4.divide_by_scales(x, s.astype(jnp.float32), s2, block_size, axis)
    return as_given(quotient, input, weights_scaling_factor, weights_scaling_factor_2)
