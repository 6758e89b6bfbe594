"""The functions of NVIDIA ModelOpt's ``quant_utils`` page, on numpy and JAX arrays.

numpy arrays and lists give numpy arrays, which are read-only because they share JAX's memory; JAX arrays give JAX
arrays, inside the caller's `jax.jit` and `jax.vmap` too. float64 is computed in float32, as JAX does.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, UInt8

from jaxq import float4, integer, mx
from jaxq.blocks import check_axis, count_blocks, split
from jaxq.errors import JaxqError
from jaxq.packing import pack_int4

__all__ = [
    "compute_e8m0",
    "dq_tensor",
    "find_scales",
    "get_amax",
    "get_num_bits",
    "get_weights_scaling_factor",
    "get_weights_scaling_factor_2",
    "pack_float32_to_4bit_cpp_based",
    "pack_float32_to_4bit_optimized",
    "pack_weights_to_int4",
    "quant_tensor",
    "quantize",
    "reshape_scales_for_per_channel_nodes",
    "rtn",
    "update_block_size",
]

AnyArray = Array | np.ndarray
Layer = int | Mapping[str, Any]
"""Bits of a weight; or ModelOpt's record of it, ``{"precision": 8, "block_size": -1, "axis": 0}``."""


def as_given(result: Any, *given: Any) -> Any:
    """A tree of JAX arrays in the kind of the arrays that it was made of: JAX if one of them is, else numpy.

    Example:
        >>> type(as_given(jnp.ones(2), [1.0, 2.0])).__name__
        'ndarray'
    """
    if any(isinstance(a, jax.Array) for a in given):
        return result
    return jax.tree.map(lambda a: a if isinstance(a, Tracer) else np.asarray(a)[()], result)


def as_array(given: Any, name: str = "the weight") -> AnyArray:
    """numpy and JAX arrays as they are, and what else holds numbers, such as nested lists, as a numpy array.

    Raises:
        JaxqError: it holds no numbers, or rows of different lengths.

    Example:
        >>> as_array([[1.0, 2.0]]).shape
        (1, 2)
    """
    if isinstance(given, jax.Array | np.ndarray):
        return given
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise JaxqError(f"{name} is no array: {str(error).partition('.')[0]}") from error
    if array.dtype.kind in "OSUmM":
        raise JaxqError(f"{name} is of type {type(given).__name__} without numbers: give an array, or lists of numbers")
    return array


def check_integer(name: str, given: Any) -> int:
    """The number as an int.

    Raises:
        JaxqError: it is no integer.

    Example:
        >>> check_integer("block_size", np.int64(16))
        16
    """
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise JaxqError(f"{name} is {given!r}: give an integer")
    return int(given)


def check_block_size(dim: int, block_size: Any) -> int:
    """The block size of an axis of this length, an integer.

    Raises:
        JaxqError: it is no integer, or -1 where the axis is empty.
    """
    block = check_integer("block_size", block_size)
    if block == -1 and not dim:
        raise JaxqError("block_size is -1 and the axis has no element: give a weight that is not empty")
    return block


def _check_blocks(shape: tuple[int, ...], block_size: Any, axis: Any) -> tuple[int, int]:
    """Block size and axis of a weight of this shape, as ints."""
    axis = check_integer("quantize_axis", axis)
    return check_block_size(shape[check_axis(len(shape), axis)], block_size), axis


def find_scales(
    w: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int = 0,
    alpha: ArrayLike = 1.0,
    use_zero_point: bool = False,
    num_bits: int = 4,
) -> tuple[Float[AnyArray, "..."], Num[AnyArray, "..."] | None]:
    """Scale, and zero point, of each block: ``s = alpha * max|block| / (2^(b-1) - 1)``; see `jaxq.integer.find_scales`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank; float32, float16 or bfloat16, finite.
        block_size: Rows a block, or -1 for the whole axis; the last block may be ragged.
        quantize_axis: The axis that is split into blocks.
        alpha: Clip ratio above 0: a number; an array that broadcasts against the scales; or one number a block, flat,
            all blocks of the first column (or row, for axis 1) first, as `jaxq.int4.AWQClipHelper.best_alpha` has them.
        use_zero_point: Asymmetric, unsigned codes.
        num_bits: 2 to 8.

    Returns:
        ``s`` in ``w``'s dtype with ``n_blocks`` in place of the axis, and ``zp`` (uint8, the same shape) or None.

    Raises:
        JaxqError: an argument is out of range, ``alpha`` fits no block, or ``w`` is not of a float type.

    Source: NVIDIA ModelOpt's ``quant_utils.find_scales``.

    Example:
        >>> s, zp = find_scales(np.array([[7.0], [-3.5], [0.0]], np.float32), block_size=2)
        >>> s.tolist(), zp
        ([[1.0], [1.0]], None)
    """
    x = jnp.asarray(as_array(w))
    block, axis = _check_blocks(x.shape, block_size, quantize_axis)
    bits, ratio = check_integer("num_bits", num_bits), _clip_ratio(alpha, x.shape, block, axis)
    return as_given(integer.find_scales(x, block, axis, ratio, bool(use_zero_point), bits), w, alpha)


def _clip_ratio(alpha: Any, shape: tuple[int, ...], block_size: int, axis: int) -> Array:
    """``alpha`` as an array that broadcasts against the scales of a weight of this shape."""
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(alpha)):
        _check_alpha(alpha)
    ratio = jnp.asarray(alpha, jnp.float32)
    if ratio.ndim == 0:
        return ratio
    axis = check_axis(len(shape), axis)
    blocks = count_blocks(shape[axis], block_size)
    scales = (*shape[:axis], blocks, *shape[axis + 1 :])
    if ratio.ndim == 1 and len(shape) > 1 and ratio.size == math.prod(scales):
        return jnp.moveaxis(ratio.reshape(*shape[:axis], *shape[axis + 1 :], blocks), -1, axis)
    padded = (1,) * (len(scales) - ratio.ndim) + ratio.shape
    if len(padded) != len(scales) or any(a not in (1, b) for a, b in zip(padded, scales, strict=True)):
        raise JaxqError(f"alpha has shape {list(ratio.shape)}: scales of shape {list(scales)} need one that fits them")
    return ratio.reshape(padded)


def _check_alpha(alpha: Any) -> None:
    """Refuse what is no number above 0, and arrays that hold such a thing."""
    try:
        valid = not isinstance(alpha, bool | np.bool_) and bool((np.asarray(alpha).astype(np.float32) > 0).all())
    except (TypeError, ValueError):
        valid = False
    if not valid:
        what = (
            f"has shape {list(np.shape(alpha))} and a number that is not above 0" if np.ndim(alpha) else f"is {alpha}"
        )
        raise JaxqError(f"alpha {what}: give a clip ratio above 0, up to 1, and an axis by name, quantize_axis")


def rtn(
    w: Float[AnyArray, "..."],
    s: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int = 0,
    zp: Num[AnyArray, "..."] | None = None,
    num_bits: int = 4,
) -> Num[AnyArray, "..."]:
    """Codes of ``w`` by round to nearest, ties to even: ``q = clip(round(w / s) + zp)``; see `jaxq.integer.rtn`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank, finite.
        s: Scales as `find_scales` gives them; not 0.
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
    x, scales, zero = _codes_arguments(w, s, zp)
    block, axis = _check_blocks(x.shape, block_size, quantize_axis)
    return as_given(integer.rtn(x, scales, block, axis, zero, check_integer("num_bits", num_bits)), w, s, zp)


def _codes_arguments(w: Any, s: Any, zp: Any) -> tuple[Array, Array, Array | None]:
    """Weights or codes, scales, and zero points or None, as JAX arrays."""
    zero = None if zp is None else jnp.asarray(as_array(zp, "zp"))
    return jnp.asarray(as_array(w)), jnp.asarray(as_array(s, "s")), zero


def dq_tensor(
    w: Num[AnyArray, "..."],
    s: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int = 0,
    zp: Num[AnyArray, "..."] | None = None,
) -> Float[AnyArray, "..."]:
    """Weights from codes: ``(w - zp) * s``; see `jaxq.integer.dq_tensor`.

    Args:
        w: Codes of any integer or float type, ``[c_in, c_out]`` or of any rank.
        s: Scales, one a block.
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
    q, scales, zero = _codes_arguments(w, s, zp)
    block, axis = _check_blocks(q.shape, block_size, quantize_axis)
    return as_given(integer.dq_tensor(q, scales, block, axis, zero), w, s, zp)


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
        w: Weight, ``[c_in, c_out]`` or of any rank; float32, float16 or bfloat16, finite.
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
    x = jnp.asarray(as_array(w))
    block, axis = _check_blocks(x.shape, block_size, quantize_axis)
    bits, ratio = check_integer("num_bits", num_bits), _clip_ratio(alpha, x.shape, block, axis)
    return as_given(integer.quant_tensor(x, block, axis, ratio, bool(use_zero_point), bits), w, alpha)


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

    Blocks lie along the last axis. `jaxq.float4.round_e4m3` gives the float8 scales that a file stores.

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

    `jaxq.float4.encode_e2m1` makes the codes of it.

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


def pack_float32_to_4bit_optimized(array: Num[AnyArray, "..."] | Sequence, signed: bool) -> UInt8[AnyArray, "bytes"]:
    """Bytes of numbers rounded to 4 bits, ties to even, and cut to [-8, 7] or [0, 15]; the first is in the low half.

    Args:
        array: Finite numbers of any type and shape, or a nested sequence of them; an odd count is filled with a zero.
        signed: Round to INT4, else to UINT4.

    Returns:
        ``ceil(size / 2)`` bytes.

    Source: the ONNX specification of INT4 and UINT4; NVIDIA ModelOpt's function of this name.

    Example:
        >>> pack_float32_to_4bit_optimized([0.5, -1.0, 9.0], signed=True).tolist()
        [240, 7]
    """
    x = array if isinstance(array, jax.Array | np.ndarray) else np.asarray(array, np.float32)
    if isinstance(x, np.ndarray) and x.dtype.itemsize > 4:
        x = np.clip(np.rint(x), -8, 15).astype(np.int8)  # JAX would round to 32 bits first, and so move ties
    return as_given(_round_and_pack(jnp.asarray(x), signed), array)


def pack_float32_to_4bit_cpp_based(array: Num[AnyArray, "..."] | Sequence, signed: bool) -> UInt8[AnyArray, "bytes"]:
    """The bytes of `pack_float32_to_4bit_optimized`, by the same compiled code.

    Args:
        array: Finite numbers of any type and shape, or a nested sequence of them; an odd count is filled with a zero.
        signed: Round to INT4, else to UINT4.

    Returns:
        ``ceil(size / 2)`` bytes.

    Source: NVIDIA ModelOpt's function of this name, which rounds ties away from zero; here they go to even.

    Example:
        >>> pack_float32_to_4bit_cpp_based([2.5, 3.5], signed=False).tolist()
        [66]
    """
    return pack_float32_to_4bit_optimized(array, signed)


@partial(jax.jit, static_argnames="signed")
def _round_and_pack(x: Array, signed: bool) -> Array:
    low, high = integer.code_range(4, unsigned=not signed)
    return pack_int4(jnp.round(jnp.clip(x.astype(jnp.float32), low, high)).astype(jnp.int8))


def pack_weights_to_int4(weight: Num[AnyArray, "..."]) -> UInt8[AnyArray, "..."]:
    """Bytes of a weight rounded to INT4: neighbours in memory (C order) share a byte, the first in the low half.

    Args:
        weight: Finite numbers of any type, ``[d0, d1, ...]``, ``d0`` even.

    Returns:
        Bytes ``[d0 / 2, d1, ...]``.

    Raises:
        JaxqError: ``d0`` is odd.

    Source: NVIDIA ModelOpt's ``quant_utils.pack_weights_to_int4``.

    Example:
        >>> pack_weights_to_int4(np.array([[1.0, -1.0], [7.4, 99.0]], np.float32)).tolist()
        [[241, 119]]
    """
    array = as_array(weight)
    shape = array.shape
    if not shape or shape[0] % 2:
        raise JaxqError(f"the weight has shape {list(shape)}: its first dimension has to be even")
    return pack_float32_to_4bit_optimized(array, signed=True).reshape(shape[0] // 2, *shape[1:])


def get_num_bits(precision_info: Mapping[str, Layer] | None = None, name: str | None = None) -> int:
    """Bits of the weight of that name: ``precision_info[name]``, else 4.

    Args:
        precision_info: Bits by weight name; ModelOpt's ``layer_info`` records, ``{"precision": 8, ...}``, do too.
        name: The weight's name.

    Returns:
        2 to 8.

    Raises:
        JaxqError: the entry is no such number.

    Source: NVIDIA ModelOpt's ``quant_utils.get_num_bits``.

    Example:
        >>> get_num_bits({"w": 8}, "w"), get_num_bits({"w": {"precision": 8}}, "w"), get_num_bits(None, "w")
        (8, 8, 4)
    """
    if precision_info is not None and not isinstance(precision_info, Mapping):
        raise JaxqError(f"precision_info is {precision_info!r}: give a dictionary from weight names to bits")
    if name is None or not precision_info or name not in precision_info:
        return 4
    entry = precision_info[name]
    bits = entry.get("precision") if isinstance(entry, Mapping) else entry
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer):
        raise JaxqError(f"precision_info[{name!r}] is {entry!r}: give a number of bits")
    try:
        integer.code_range(int(bits), unsigned=False)
    except JaxqError as error:
        raise JaxqError(f"precision_info[{name!r}] is {entry!r}: {error}") from error
    return int(bits)


def update_block_size(
    num_bits: int, block_size: int, quantize_axis: int = 0, w: Num[AnyArray, "..."] | None = None
) -> int:
    """Rows a block: the whole axis where ``block_size`` is -1 or ``num_bits`` 8 (per channel), else ``block_size``.

    Args:
        num_bits: Bits of the weight.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks.
        w: The weight; only its shape is looked at, and only for whole axes.

    Returns:
        A number of rows.

    Raises:
        JaxqError: the axis is asked for and ``w`` is missing or lacks it.

    Source: the page of NVIDIA ModelOpt's ``quant_utils.update_block_size``.

    Example:
        >>> update_block_size(4, 128), update_block_size(8, 128, w=np.zeros((300, 2)))
        (128, 300)
    """
    if block_size != -1 and num_bits != 8:
        return block_size
    if w is None:
        raise JaxqError(f"w is missing: blocks of {num_bits} bits and size {block_size} span the weight's axis")
    shape = as_array(w).shape
    return shape[check_axis(len(shape), quantize_axis)]


def reshape_scales_for_per_channel_nodes(
    scales_map: Mapping[str, Float[AnyArray, "..."]],
    block_size: int,
    precision_info: Mapping[str, Layer] | None = None,
) -> dict[str, Float[AnyArray, "..."]]:
    """Scales by weight name, those of per-channel weights flat: ``[1, c_out]`` -> ``[c_out]``.

    Args:
        scales_map: Scales by weight name; it stays as it is.
        block_size: Block size of all weights; -1 is per channel.
        precision_info: Bits by weight name, as `get_num_bits` takes it. 8 bits are per channel, unless a record
            gives a ``block_size`` of its own.

    Returns:
        A new dict with the same names.

    Raises:
        JaxqError: a weight that is per channel has more than one scale a channel.

    Source: NVIDIA ModelOpt's ``quant_utils.reshape_scales_for_per_channel_nodes``.

    Example:
        >>> maps = reshape_scales_for_per_channel_nodes({"a": np.ones((1, 3)), "b": np.ones((2, 3))}, 16, {"a": 8})
        >>> maps["a"].shape, maps["b"].shape
        ((3,), (2, 3))
    """
    found = {}
    for name, given in scales_map.items():
        s = as_array(given, f"the scales of {name!r}")
        per_channel = layer_block_size(block_size, precision_info, name) == -1
        if per_channel and s.size != max(s.shape, default=1):
            raise JaxqError(f"the scales of {name!r} have shape {list(s.shape)}: per channel there is one a channel")
        found[name] = s.reshape(-1) if per_channel else s
    return found


def layer_block_size(block_size: int, precision_info: Mapping[str, Layer] | None, name: str) -> int:
    """Block size of the weight of that name: its record's own, else -1 (per channel) of 8 bits, else ``block_size``.

    Example:
        >>> [layer_block_size(16, {"a": 8, "b": {"precision": 8, "block_size": 32}}, name) for name in "abc"]
        [-1, 32, 16]
    """
    entry = (precision_info or {}).get(name)
    if isinstance(entry, Mapping) and entry.get("block_size") is not None:
        return check_integer(f"block_size of precision_info[{name!r}]", entry["block_size"])
    return -1 if get_num_bits(precision_info, name) == 8 else block_size
