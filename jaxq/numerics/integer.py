"""Integer weights of 2 to 8 bits with a scale, and optionally a zero point, per block and column."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxq.errors import JaxqError
from jaxq.numerics import checks
from jaxq.numerics.blocks import check_axis, count_blocks, max_magnitude, split, spread
from jaxq.numerics.jit import jit

_INTEGERS = {name: checks.whole_number for name in ("block_size", "quantize_axis", "num_bits")}
_FIND = {"w": checks.weight, "alpha": checks.number, **_INTEGERS}
_RTN = {"w": checks.weight, "s": checks.array, "zp": checks.optional_array, **_INTEGERS}
_DQ = {
    **{"w": checks.array, "s": checks.array, "zp": checks.optional_array},
    **{"block_size": checks.whole_number, "quantize_axis": checks.whole_number},
}


def code_range(num_bits: int, unsigned: bool) -> tuple[int, int]:
    """Least and greatest code: ``[-2^(b-1), 2^(b-1) - 1]`` signed, ``[0, 2^b - 1]`` unsigned.

    Raises:
        JaxqError: ``num_bits`` is not 2 to 8.

    Example:
        >>> code_range(4, unsigned=False), code_range(4, unsigned=True)
        ((-8, 7), (0, 15))
    """
    checks.whole_number("num_bits", num_bits)
    if not 2 <= num_bits <= 8:
        raise JaxqError(f"num_bits is {num_bits}: integer weights have 2 to 8 bits")
    return (0, 2**num_bits - 1) if unsigned else (-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)


def divide(x: Float[Array, "..."], y: Float[Array, "..."] | float | int) -> Float[Array, "..."]:
    """``x / y``, correctly rounded.

    XLA turns division by a broadcast value into a product with its reciprocal, which is one rounding off and moves
    ties. The division stays where the divisor depends on every element of ``x``; ``0 * x`` adds nothing for a finite
    ``x``.
    """
    return x / (y + 0 * x)


@jit(static_argnames=("block_size", "quantize_axis", "use_zero_point", "num_bits"), checks=_FIND)
def find_scales(
    w: Float[Array, "..."],
    block_size: int,
    quantize_axis: int = 0,
    alpha: float | Float[Array, "..."] = 1.0,
    use_zero_point: bool = False,
    num_bits: int = 4,
) -> tuple[Float[Array, "..."], Num[Array, "..."] | None]:
    """Scale, and zero point, of each block: ``s = alpha * max|block| / (2^(b-1) - 1)``.

    With a zero point, ``s = (hi - lo) / (2^b - 1)`` and ``zp = round(-lo / s)`` for ``lo = alpha * min(block, 0)`` and
    ``hi = alpha * max(block, 0)``: the range always includes zero, so ``zp`` is never clipped.
    A block of zeros gets ``s = 1``. There is no other floor: weights near 5e-6 keep their resolution.

    Args:
        w: Weight of any rank, ``[c_in, c_out]`` as a rule; float32, float16 or bfloat16, finite.
        block_size: Rows a block, or -1 for the whole axis; the last block may be ragged.
        quantize_axis: The axis that is split into blocks.
        alpha: Clip ratio in (0, 1]; a number, or an array that broadcasts against the scales.
        use_zero_point: Asymmetric, unsigned codes.
        num_bits: 2 to 8.

    Returns:
        ``s`` in ``w``'s dtype, in units of ``w`` per code, with ``n_blocks`` in place of the axis;
        ``zp`` (uint8, the same shape), or None for symmetric codes.

    Raises:
        JaxqError: ``block_size``, ``quantize_axis`` or ``num_bits`` is out of range, or ``w`` is not of a float type.

    Source: max-abs block scales as in NVIDIA ModelOpt's ``quant_utils.find_scales``.

    Example:
        >>> s, zp = find_scales(jnp.array([[7.0], [-3.5], [0.0]]), block_size=2)
        >>> s.tolist(), zp
        ([[1.0], [1.0]], None)
    """
    axis = check_axis(w.ndim, quantize_axis)
    blocks = split(w, block_size, axis)
    _, q_max = code_range(num_bits, unsigned=use_zero_point)
    if not use_zero_point:
        amax = max_magnitude(blocks, axis + 1).astype(jnp.float32)
        return _positive(divide(amax * alpha, q_max), w.dtype), None
    lo, hi = _range(blocks, axis + 1)
    lo, hi = jnp.minimum(lo, 0) * alpha, jnp.maximum(hi, 0) * alpha
    # Near the end of float32 the width of a range with both signs overflows: then each side is divided by itself.
    width = hi - lo
    s = jnp.where(jnp.isfinite(width), divide(width, q_max), divide(hi, q_max) - divide(lo, q_max))
    s = _positive(s, w.dtype)
    zp = jnp.clip(jnp.round(divide(-lo, s.astype(jnp.float32))), 0, q_max)
    return s, zp.astype(jnp.uint8)


@jit(static_argnames=("block_size", "quantize_axis", "num_bits"), checks=_FIND)
def find_full_range_scales(
    w: Float[Array, "..."],
    block_size: int,
    quantize_axis: int = 0,
    alpha: float | Float[Array, "..."] = 1.0,
    num_bits: int = 4,
) -> Float[Array, "..."]:
    """Scales that use the least code, ``-2^(b-1)``, as `find_scales` does not: ``s = -alpha * m / 2^(b-1)``.

    ``m`` is the block's weight of greatest magnitude, with its sign; it gets the least code, so ``s`` is negative where
    ``m`` is positive. Steps are one part in ``2^(b-1)`` finer; weights of the other sign are clipped at
    ``(1 - 2^(1-b)) |m|``. Arguments, shapes and errors are those of `find_scales`.

    Source: symmetric scales of onnxruntime's and llama.cpp's 4-bit quantizers.

    Example:
        >>> find_full_range_scales(jnp.array([[8.0], [-3.0], [-4.0], [1.0]]), block_size=2).tolist()
        [[-1.0], [0.5]]
    """
    axis = check_axis(w.ndim, quantize_axis)
    q_min, _ = code_range(num_bits, unsigned=False)
    lo, hi = _range(split(w, block_size, axis), axis + 1)
    s = (jnp.where(hi >= -lo, hi, lo) * alpha / q_min).astype(w.dtype)  # a power of two: the division is exact
    return jnp.where(s == 0, jnp.ones_like(s), s)


def _range(blocks: Float[Array, "..."], axis: int) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Least and greatest weight in float32; exact in any type, so the weights need no cast and no copy."""
    return jnp.min(blocks, axis=axis).astype(jnp.float32), jnp.max(blocks, axis=axis).astype(jnp.float32)


def _positive(s: Float[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    s = s.astype(dtype)
    return jnp.where(s > 0, s, jnp.ones_like(s))


@jit(static_argnames=("block_size", "quantize_axis", "num_bits"), checks=_RTN)
def rtn(
    w: Float[Array, "..."],
    s: Float[Array, "..."],
    block_size: int,
    quantize_axis: int = 0,
    zp: Num[Array, "..."] | None = None,
    num_bits: int = 4,
) -> Num[Array, "..."]:
    """Codes of ``w`` by round to nearest, ties to even: ``q = clip(round(w / s) + zp)``.

    Codes are integers, so `jax.grad` through them is zero; `jaxq.fake_quant` has a straight-through gradient.

    Args:
        w: Weight ``[c_in, c_out]`` or of any rank, finite.
        s: Scales as `find_scales` gives them; not 0.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks.
        zp: Zero points, or None for symmetric codes.
        num_bits: 2 to 8.

    Returns:
        Codes of ``w``'s shape: int8 in ``[-2^(b-1), 2^(b-1) - 1]``, or uint8 in ``[0, 2^b - 1]`` with a zero point.

    Raises:
        JaxqError: the number of scale rows is not ``ceil(dim / block_size)``.

    Source: NVIDIA ModelOpt's ``quant_utils.rtn``.

    Example:
        >>> rtn(jnp.array([[2.5], [-9.0]]), jnp.array([[1.0]]), block_size=2).tolist()
        [[2], [-8]]
    """
    axis = check_axis(w.ndim, quantize_axis)
    for per_block in (s, zp):
        if per_block is not None:
            check_scales(w.shape, per_block.shape, block_size, axis)
    q_min, q_max = code_range(num_bits, unsigned=zp is not None)
    rows = w.shape[axis]
    q = jnp.round(divide(w.astype(jnp.float32), spread(s.astype(jnp.float32), rows, block_size, axis)))
    if zp is not None:
        q = q + spread(zp.astype(jnp.float32), rows, block_size, axis)
    return jnp.clip(q, q_min, q_max).astype(jnp.int8 if zp is None else jnp.uint8)


@jit(static_argnames=("block_size", "quantize_axis"), checks=_DQ)
def dq_tensor(
    w: Num[Array, "..."],
    s: Float[Array, "..."],
    block_size: int,
    quantize_axis: int = 0,
    zp: Num[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Weights from codes: ``(w - zp) * s``.

    Args:
        w: Codes ``[c_in, c_out]`` or of any rank, of any integer or float dtype; uint8 with zero points only.
        s: Scales, one a block, as `find_scales` gives them.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks.
        zp: Zero points, or None.

    Returns:
        Weights of ``w``'s shape in ``s``'s dtype.

    Raises:
        JaxqError: the number of scale rows is not ``ceil(dim / block_size)``, or uint8 codes have no zero points.

    Example:
        >>> dq_tensor(jnp.array([[2], [-8]]), jnp.array([[0.5]]), block_size=2).tolist()
        [[1.0], [-4.0]]
    """
    axis = check_axis(w.ndim, quantize_axis)
    for per_block in (s, zp):
        if per_block is not None:
            check_scales(w.shape, per_block.shape, block_size, axis)
    if zp is None and w.dtype == jnp.uint8:
        raise JaxqError("w holds uint8 codes and zp is None: give their zero points, or symmetric codes as int8")
    q, rows = w.astype(s.dtype), w.shape[axis]
    if zp is not None:
        q = q - spread(zp.astype(s.dtype), rows, block_size, axis)
    return q * spread(s, rows, block_size, axis)


@jit(static_argnames=("block_size", "quantize_axis", "use_zero_point", "num_bits"), checks=_FIND)
def quant_tensor(
    w: Float[Array, "..."],
    block_size: int,
    quantize_axis: int = 0,
    alpha: float | Float[Array, "..."] = 1.0,
    use_zero_point: bool = False,
    num_bits: int = 4,
) -> tuple[Num[Array, "..."], Float[Array, "..."], Num[Array, "..."] | None]:
    """Codes, scales and zero points of ``w``: `find_scales`, then `rtn`. Arguments and errors are theirs.

    `jax.grad` through the codes is zero; `jaxq.fake_quant` has a straight-through gradient.

    Example:
        >>> q, s, zp = quant_tensor(jnp.array([[7.0], [-3.5]]), block_size=2)
        >>> q.tolist(), s.tolist(), zp
        ([[7], [-4]], [[1.0]], None)
    """
    s, zp = find_scales(w, block_size, quantize_axis, alpha, use_zero_point, num_bits)
    return rtn(w, s, block_size, quantize_axis, zp, num_bits), s, zp


def check_scales(shape: tuple[int, ...], s_shape: tuple[int, ...], block_size: int, axis: int) -> None:
    """Checks that there is one scale, or zero point, for each block and column.

    Raises:
        JaxqError: ``s_shape`` is not that of one number a block.
    """
    expected = (*shape[:axis], count_blocks(shape[axis], block_size), *shape[axis + 1 :])
    if s_shape != expected:
        raise JaxqError(
            f"scales or zero points have shape {list(s_shape)}: a weight of shape {list(shape)} "
            f"in blocks of {block_size} on axis {axis} needs {list(expected)}"
        )
