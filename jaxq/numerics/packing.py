"""Two 4-bit codes a byte, the first in the low half, as ONNX stores INT4 and UINT4."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Integer, UInt8

from jaxq.numerics import checks
from jaxq.numerics.jit import jit
from jaxq.numerics.sharding import whole


@jit(checks={"q": checks.integers})
def pack_int4(q: Integer[Array, "..."]) -> UInt8[Array, "bytes"]:
    """Bytes of 4-bit codes: byte ``i`` is ``q[2i] & 15 | (q[2i + 1] & 15) << 4`` over the flattened array.

    Args:
        q: Codes in [-8, 7] or [0, 15], of any shape; an odd count is padded with a zero.

    Returns:
        ``ceil(q.size / 2)`` bytes.

    Source: the ONNX specification of INT4 and UINT4 tensors.

    Example:
        >>> pack_int4(jnp.array([1, -1, 7], jnp.int8)).tolist()
        [241, 7]
    """
    flat = whole(q).ravel().astype(jnp.uint8) & 15
    if flat.size % 2:
        flat = jnp.append(flat, jnp.uint8(0))
    pairs = flat.reshape(-1, 2)
    return pairs[:, 0] | (pairs[:, 1] << 4)


@jit(static_argnames=("shape", "signed"), checks={"packed": checks.integers, "shape": checks.shape})
def unpack_int4(packed: UInt8[Array, "bytes"], shape: tuple[int, ...], signed: bool) -> Integer[Array, "..."]:
    """The inverse of `pack_int4`: int8 codes in [-8, 7] if ``signed``, else uint8 in [0, 15].

    Args:
        packed: Bytes as `pack_int4` gives them.
        shape: Shape of the codes.
        signed: Whether the bytes hold INT4; else UINT4.

    Example:
        >>> unpack_int4(jnp.array([241, 7], jnp.uint8), (3,), signed=True).tolist()
        [1, -1, 7]
    """
    # One broadcast shift: to stack the two halves takes XLA's CPU backend several times as long.
    halves = whole(packed)[:, None] >> jnp.array([[0, 4]], jnp.uint8)
    nibbles = (halves & 15).ravel()[: math.prod(shape)].reshape(shape)
    return (nibbles.astype(jnp.int8) ^ 8) - 8 if signed else nibbles
