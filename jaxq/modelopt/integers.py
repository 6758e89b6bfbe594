"""The integer functions of ModelOpt's ``quant_utils`` page: scales, codes and weights by blocks, 2 to 8 bits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from jaxq.errors import JaxqError
from jaxq.modelopt.arrays import AnyArray, as_array, as_floats, as_given, check_blocks, check_integer
from jaxq.numerics import integer
from jaxq.numerics.blocks import check_axis, count_blocks


def find_scales(
    w: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int = 0,
    alpha: ArrayLike = 1.0,
    use_zero_point: bool = False,
    num_bits: int = 4,
) -> tuple[Float[AnyArray, "..."], Num[AnyArray, "..."] | None]:
    """Scale, and zero point, of each block: ``s = alpha * max|block| / (2^(b-1) - 1)``.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank; float32, float16 or bfloat16, finite; integers count as float32.
        block_size: Rows a block, or -1 for the whole axis; the last block may be ragged.
        quantize_axis: The axis that is split into blocks.
        alpha: Clip ratio above 0: a number; an array that broadcasts against the scales; or a flat array with one
            number for each block, those of the first column (or row, for axis 1) first, as
            `jaxq.int4.AWQClipHelper.best_alpha`.
        use_zero_point: Asymmetric, unsigned codes.
        num_bits: 2 to 8.

    Returns:
        ``s`` in ``w``'s dtype with ``n_blocks`` in place of the axis, and ``zp`` (uint8, the same shape) or None.

    Raises:
        JaxqError: an argument is out of range, ``alpha`` does not fit the blocks, or ``w`` has no numbers.

    Source: NVIDIA ModelOpt's ``quant_utils.find_scales``.

    Example:
        >>> s, zp = find_scales(np.array([[7.0], [-3.5], [0.0]], np.float32), block_size=2)
        >>> s.tolist(), zp
        ([[1.0], [1.0]], None)
    """
    x = jnp.asarray(as_floats(w))
    block, axis = check_blocks(x.shape, block_size, quantize_axis)
    bits, ratio = check_integer("num_bits", num_bits), _clip_ratio(alpha, x.shape, block, axis)
    return as_given(integer.find_scales(x, block, axis, ratio, bool(use_zero_point), bits), w, alpha)


def _clip_ratio(alpha: Any, shape: tuple[int, ...], block_size: int, axis: int) -> Array:
    """``alpha`` as an array that broadcasts against the scales of a weight of this shape."""
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(alpha)):  # a trace has no values to check
        _check_alpha(alpha)
    ratio = jnp.asarray(alpha, jnp.float32)
    if ratio.ndim == 0:
        return ratio
    axis = check_axis(len(shape), axis)
    blocks = count_blocks(shape[axis], block_size)
    scales = (*shape[:axis], blocks, *shape[axis + 1 :])
    # Flat: the blocks of one line of the weight are neighbours.
    if ratio.ndim == 1 and len(shape) > 1 and ratio.size == math.prod(scales):
        return jnp.moveaxis(ratio.reshape(*shape[:axis], *shape[axis + 1 :], blocks), -1, axis)
    padded = (1,) * (len(scales) - ratio.ndim) + ratio.shape
    if len(padded) != len(scales) or any(a not in (1, b) for a, b in zip(padded, scales, strict=True)):
        raise JaxqError(f"alpha has shape {list(ratio.shape)}: scales of shape {list(scales)} need one that fits them")
    return ratio.reshape(padded)


def _check_alpha(alpha: Any) -> None:
    """Raise an error for an alpha, or an element of it, that is no number above 0."""
    try:
        valid = not isinstance(alpha, bool | np.bool_) and bool((np.asarray(alpha).astype(np.float32) > 0).all())
    except (TypeError, ValueError):
        valid = False
    if not valid:
        fault = f"is {alpha}"
        if np.ndim(alpha):
            fault = f"has shape {list(np.shape(alpha))} and a number that is not above 0"
        raise JaxqError(f"alpha {fault}: give a clip ratio above 0, up to 1, and an axis by name, quantize_axis")


def rtn(
    w: Float[AnyArray, "..."],
    s: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int = 0,
    zp: Num[AnyArray, "..."] | None = None,
    num_bits: int = 4,
) -> Num[AnyArray, "..."]:
    """Codes of ``w`` by round to nearest, ties to even: ``q = clip(round(w / s) + zp)``.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank, finite; floats or integers.
        s: Scales as `find_scales` returns them; not 0; integers count as float32.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks.
        zp: Zero points of any integer or float type, or None for symmetric codes.
        num_bits: 2 to 8.

    Returns:
        Codes of ``w``'s shape: int8 in ``[-2^(b-1), 2^(b-1) - 1]``, or uint8 in ``[0, 2^b - 1]`` with a zero point.

    Raises:
        JaxqError: the number of scale rows is not ``ceil(dim / block_size)``.

    Source: NVIDIA ModelOpt's ``quant_utils.rtn``.

    Example:
        >>> rtn(np.array([[2.5], [-9.0]], np.float32), np.ones((1, 1), np.float32), block_size=2).tolist()
        [[2], [-8]]
    """
    x, scales, zero_points = _as_jax(as_floats(w), s, zp)
    block, axis = check_blocks(x.shape, block_size, quantize_axis)
    return as_given(integer.rtn(x, scales, block, axis, zero_points, check_integer("num_bits", num_bits)), w, s, zp)


def _as_jax(w: Any, s: Any, zp: Any) -> tuple[Array, Array, Array | None]:
    """Weights or codes, scales, and zero points (or None) as JAX arrays."""
    zero_points = None if zp is None else jnp.asarray(as_array(zp, "zp"))
    return jnp.asarray(as_array(w)), jnp.asarray(as_floats(s, "s")), zero_points


def dq_tensor(
    w: Num[AnyArray, "..."],
    s: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int = 0,
    zp: Num[AnyArray, "..."] | None = None,
) -> Float[AnyArray, "..."]:
    """Weights from codes: ``(w - zp) * s``; see `jaxq.numerics.integer.dq_tensor`.

    Args:
        w: Codes of any integer or float type, ``[c_in, c_out]`` or of any rank.
        s: Scales, one a block; integers count as float32.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks.
        zp: Zero points of any integer or float type, or None.

    Returns:
        Weights of ``w``'s shape in ``s``'s dtype.

    Raises:
        JaxqError: the number of scale rows is not ``ceil(dim / block_size)``.

    Source: NVIDIA ModelOpt's ``quant_utils.dq_tensor``.

    Example:
        >>> dq_tensor(np.array([[2], [-8]], np.int8), np.array([[0.5]], np.float32), block_size=2).tolist()
        [[1.0], [-4.0]]
    """
    q, scales, zero_points = _as_jax(w, s, zp)
    block, axis = check_blocks(q.shape, block_size, quantize_axis)
    if zero_points is None and q.dtype == jnp.uint8:
        q = q.astype(jnp.int16)  # ModelOpt takes them too, `jaxq.dq_tensor` does not
    return as_given(integer.dq_tensor(q, scales, block, axis, zero_points), w, s, zp)


def quant_tensor(
    w: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int = 0,
    alpha: ArrayLike = 1.0,
    use_zero_point: bool = False,
    num_bits: int = 4,
) -> tuple[Num[AnyArray, "..."], Float[AnyArray, "..."], Num[AnyArray, "..."] | None]:
    """Codes, scales and zero points of ``w``: `find_scales`, then `rtn`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank; float32, float16 or bfloat16, finite; integers count as float32.
        block_size: Rows a block, or -1 for the whole axis.
        quantize_axis: The axis that is split into blocks.
        alpha: Clip ratio; see `find_scales`.
        use_zero_point: Asymmetric, unsigned codes.
        num_bits: 2 to 8.

    Returns:
        Codes (int8, or uint8 with a zero point), scales in ``w``'s dtype, and zero points (uint8) or None.

    Raises:
        JaxqError: as `find_scales`.

    Source: NVIDIA ModelOpt's ``quant_utils.quant_tensor``.

    Example:
        >>> q, s, zp = quant_tensor(np.array([[7.0], [-3.5]], np.float32), block_size=2)
        >>> q.tolist(), s.tolist(), zp
        ([[7], [-4]], [[1.0]], None)
    """
    x = jnp.asarray(as_floats(w))
    block, axis = check_blocks(x.shape, block_size, quantize_axis)
    bits, ratio = check_integer("num_bits", num_bits), _clip_ratio(alpha, x.shape, block, axis)
    return as_given(integer.quant_tensor(x, block, axis, ratio, bool(use_zero_point), bits), w, alpha)
