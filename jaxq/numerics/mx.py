"""Microscaling (MX) formats: E8M0 scales, powers of two, over blocks of 32 small floats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxq.numerics.blocks import check_axis, spread
from jaxq.numerics.jit import jit

MX_BLOCK = 32
E8M0_BIAS = 127


@jit(static_argnames="element_max")
def shared_exponent(amax: Float[Array, "..."], element_max: float) -> Int32[Array, "..."]:
    """The least exponent ``e`` with ``amax <= element_max * 2^e``: ``ceil(log2(amax / element_max))``, at least -127.

    Exact: computed from the bits of ``amax``, without a logarithm. Zero gets -127.

    Args:
        amax: Greatest magnitude of each block, finite.
        element_max: Greatest number of the element type: 448 for E4M3, 6 for E2M1.

    Source: OCP Microscaling Formats (MX) specification 1.0, with the exponent rounded up, so that nothing saturates,
        as NVIDIA ModelOpt's ``quant_utils.compute_e8m0`` has it.

    Example:
        >>> shared_exponent(jnp.array([448.0, 449.0, 0.0]), 448.0).tolist()
        [0, 1, -127]
    """
    mantissa, exponent = jnp.frexp(amax.astype(jnp.float32))
    top, shift = _frexp(element_max)
    e = exponent.astype(jnp.int32) - shift + (mantissa > top).astype(jnp.int32)
    return jnp.where(amax > 0, jnp.maximum(e, -E8M0_BIAS), -E8M0_BIAS)


def _frexp(x: float) -> tuple[float, int]:
    shift = 0
    while x >= 1:
        x, shift = x / 2, shift + 1
    return x, shift


@jit
def power_of_two(e: Int32[Array, "..."]) -> Float[Array, "..."]:
    """``2^e`` in float32, exact, for exponents of -126 to 127.

    Example:
        >>> power_of_two(jnp.array([-1, 3])).tolist()
        [0.5, 8.0]
    """
    return jax.lax.bitcast_convert_type((e + E8M0_BIAS) << 23, jnp.float32)


@jit(static_argnames=("block_size", "axis"))
def scale_down(
    w: Float[Array, "..."], e: Int32[Array, "..."], block_size: int = MX_BLOCK, axis: int = 0
) -> Float[Array, "..."]:
    """``w / 2^e``, exact, float32, of ``w``'s shape; ``e`` is one exponent a block, -127 to 126.

    Example:
        >>> scale_down(jnp.array([[3.0], [8.0]]), jnp.array([[1]]), block_size=2).tolist()
        [[1.5], [4.0]]
    """
    axis = check_axis(w.ndim, axis)
    return w.astype(jnp.float32) * spread(power_of_two(-e), w.shape[axis], block_size, axis)


@jit(static_argnames=("block_size", "axis"))
def scale_up(
    q: Float[Array, "..."], e: Int32[Array, "..."], block_size: int = MX_BLOCK, axis: int = 0
) -> Float[Array, "..."]:
    """``q * 2^e``, float32, of ``q``'s shape: the inverse of `scale_down`.

    ``2^e`` is multiplied in as two factors, because ``2^-127`` is not a normal float32 number.

    Example:
        >>> scale_up(jnp.array([[1.5], [4.0]]), jnp.array([[1]]), block_size=2).tolist()
        [[3.0], [8.0]]
    """
    axis = check_axis(q.ndim, axis)
    half = e // 2
    first, second = (spread(power_of_two(n), q.shape[axis], block_size, axis) for n in (half, e - half))
    return q.astype(jnp.float32) * first * second
