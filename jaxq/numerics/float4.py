"""NVFP4: four-bit floats (E2M1) with an E4M3 scale a block of 16 and one float32 scale a weight."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped, UInt8

from jaxq.numerics import checks
from jaxq.numerics.blocks import check_axis, max_magnitude, split, spread
from jaxq.numerics.integer import divide
from jaxq.numerics.jit import jit

NVFP4_BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E2M1_CLIP = 7.0  # greater magnitudes are clipped, not rounded: half a step of 2 beyond 6
E4M3_CLIP = 464.0  # half a step of 32 beyond 448
_E4M3_TOP_CODE = 126  # 448; the code 127 is NaN
_E4M3_TINY = 2.0**-9  # the least positive number of E4M3


@jit(checks={"x": checks.array})
def encode_e2m1(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """Nearest E2M1 codes, ties to even, saturating at 6: three bits of magnitude below the sign bit, in [0, 15].

    Magnitudes of the codes 0 to 7: 0, 0.5, 1, 1.5, 2, 3, 4, 6. Negative zero gets code 0; a negative number that is
    rounded to zero gets code 8.

    Source: OCP Microscaling Formats (MX) specification 1.0, section 5.3.3.

    Example:
        >>> encode_e2m1(jnp.array([0.25, 0.75, -2.5, 100.0])).tolist()
        [0, 2, 12, 7]
    """
    # Clip first, so that `x` is read in one place: else XLA does not fuse the caller's division with the lines below,
    # and stores a copy of the weight.
    x = jnp.clip(x.astype(jnp.float32), -E2M1_MAX, E2M1_MAX)
    a = jnp.abs(x)
    # The code is the number of midpoints below the magnitude. A midpoint itself goes to the even neighbour.
    above = (a > 0.25, a >= 0.75, a > 1.25, a >= 1.75, a > 2.5, a >= 3.5, a > 5.0)
    magnitude = sum((step.astype(jnp.uint8) for step in above[1:]), above[0].astype(jnp.uint8))
    return magnitude | ((x < 0).astype(jnp.uint8) << 3)


@jit(checks={"codes": checks.integers})
def decode_e2m1(codes: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """Float32 values of E2M1 codes: exact.

    Example:
        >>> decode_e2m1(jnp.array([1, 7, 12], jnp.uint8)).tolist()
        [0.5, 6.0, -2.0]
    """
    magnitude = (codes & 7).astype(jnp.int32)
    # Bits of a float32: exponent and mantissa of E2M1 in their places; codes 0 and 1 are subnormal.
    bits = ((magnitude + (126 << 1)) << 22).astype(jnp.int32)
    value = jnp.where(
        magnitude < 2, 0.5 * magnitude.astype(jnp.float32), jax.lax.bitcast_convert_type(bits, jnp.float32)
    )
    return jnp.where(codes > 7, -value, value)


@jit
def tensor_scale(w: Float[Array, "..."]) -> Float[Array, ""]:
    """NVFP4's scale of a whole weight, float32: ``max|w| / (6 * 448)``, so that block scales fit E4M3; 1 for zeros.

    Source: NVIDIA ModelOpt's ``quant_utils.get_weights_scaling_factor_2``.

    Example:
        >>> tensor_scale(jnp.array([[2688.0, 1.0]])).item()
        1.0
    """
    amax = jnp.maximum(jnp.max(w, initial=0), -jnp.min(w, initial=0)).astype(jnp.float32)  # see `max_magnitude`
    s2 = divide(amax, E2M1_MAX * E4M3_MAX)
    return jnp.where(s2 > 0, s2, jnp.ones_like(s2))


@jit(static_argnames=("block_size", "axis"))
def block_ratios(
    w: Float[Array, "..."],
    s2: Float[Array, ""],
    block_size: int = NVFP4_BLOCK,
    axis: int = 0,
    clip_ratio: float | Float[Array, "..."] = 1.0,
) -> Float[Array, "..."]:
    """Block scales before they are rounded to E4M3: ``clip_ratio * max|block| / (6 * s2)``, float32; 1 for zeros.

    Args:
        w: Weight of any rank.
        s2: `tensor_scale`.
        block_size: Rows a block; the last block may be ragged.
        axis: The axis that is split into blocks.
        clip_ratio: Number, or array of the result's shape, in (0, 1].

    Source: NVIDIA ModelOpt's ``quant_utils.get_weights_scaling_factor``.

    Example:
        >>> block_ratios(jnp.array([[3.0], [-6.0]]), jnp.float32(0.5), block_size=2).tolist()
        [[2.0]]
    """
    axis = check_axis(w.ndim, axis)
    amax = max_magnitude(split(w, block_size, axis), axis + 1)
    ratio = divide(amax.astype(jnp.float32) * clip_ratio, E2M1_MAX * s2)
    return jnp.where(ratio > 0, ratio, jnp.ones_like(ratio))


@jit
def round_e4m3(ratio: Float[Array, "..."]) -> Shaped[Array, "..."]:
    """Numbers rounded to float8 E4M3, ties to even, with magnitudes clipped to [2^-9, 448].

    Example:
        >>> round_e4m3(jnp.array([1.05, -500.0, 0.0])).astype(float).tolist()
        [1.0, -448.0, 0.001953125]
    """
    magnitude = jnp.clip(jnp.abs(ratio), _E4M3_TINY, E4M3_MAX)
    return jnp.where(ratio < 0, -magnitude, magnitude).astype(jnp.float8_e4m3fn)


@jit
def shift_e4m3(s: Shaped[Array, "..."], steps: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """E4M3 numbers moved ``steps`` neighbours away from zero: above 2^-6 eight steps are a factor of two.

    The sign stays, and the magnitude stays within [2^-9, 448].

    Args:
        s: Numbers in float8 E4M3.
        steps: Number of neighbours, negative towards zero.

    Example:
        >>> shift_e4m3(jnp.array([1.0, -1.0], jnp.float8_e4m3fn), jnp.int32(8)).astype(float).tolist()
        [2.0, -2.0]
    """
    code = jax.lax.bitcast_convert_type(s, jnp.uint8).astype(jnp.int32)
    sign = code & 0x80
    moved = jnp.clip((code & 0x7F) + steps, 1, _E4M3_TOP_CODE) | sign
    return jax.lax.bitcast_convert_type(moved.astype(jnp.uint8), jnp.float8_e4m3fn)


@jit(static_argnames=("block_size", "axis"))
def divide_by_scales(
    w: Float[Array, "..."],
    s: Float[Array, "..."],
    s2: Float[Array, ""],
    block_size: int = NVFP4_BLOCK,
    axis: int = 0,
) -> Float[Array, "..."]:
    """``w / (s * s2)``, the numbers that `encode_e2m1` rounds; float32, of ``w``'s shape.

    Args:
        w: Weight of any rank.
        s: Block scales in float32.
        s2: Scale of the weight.
        block_size: Rows a block.
        axis: The axis that is split into blocks.

    Source: NVIDIA ModelOpt's ``quant_utils.quantize``.

    Example:
        >>> divide_by_scales(jnp.array([[3.0], [-6.0]]), jnp.array([[2.0]]), jnp.float32(0.5), block_size=2).tolist()
        [[3.0], [-6.0]]
    """
    axis = check_axis(w.ndim, axis)
    # Division by 1 changes no number. Without it XLA recomputes `s`, and its rounding to E4M3, for each weight of a
    # block; a division it computes once.
    return divide(w.astype(jnp.float32), spread(divide(s * s2, 1), w.shape[axis], block_size, axis))
