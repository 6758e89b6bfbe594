"""The packing functions of ModelOpt's ``quant_utils`` page: numbers rounded to 4 bits, two in a byte."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num, UInt8

from jaxq.errors import JaxqError
from jaxq.modelopt.arrays import AnyArray, as_array, as_given
from jaxq.numerics import integer
from jaxq.numerics.jit import jit
from jaxq.numerics.packing import pack_int4


def pack_float32_to_4bit_optimized(array: Num[AnyArray, "..."] | Sequence, signed: bool) -> UInt8[AnyArray, "bytes"]:
    """Bytes of numbers rounded to 4 bits, ties to even, and clipped to [-8, 7] or [0, 15]; the first in the low half.

    Args:
        array: Finite numbers of any type and shape, or a nested sequence of them. A zero completes the last byte of an
            odd count.
        signed: Round to INT4; else to UINT4.

    Returns:
        ``ceil(size / 2)`` bytes.

    Source: the ONNX specification of INT4 and UINT4; NVIDIA ModelOpt's function of this name.

    Example:
        >>> pack_float32_to_4bit_optimized([0.5, -1.0, 9.0], signed=True).tolist()
        [240, 7]
    """
    x = array if isinstance(array, jax.Array | np.ndarray) else np.asarray(array, np.float32)
    if isinstance(x, np.ndarray) and x.dtype.itemsize > 4:
        x = np.clip(np.rint(x), -8, 15).astype(np.int8)  # JAX would first round to 32 bits, which makes new ties
    return as_given(_round_and_pack(jnp.asarray(x), signed), array)


def pack_float32_to_4bit_cpp_based(array: Num[AnyArray, "..."] | Sequence, signed: bool) -> UInt8[AnyArray, "bytes"]:
    """The same bytes as `pack_float32_to_4bit_optimized`, from the same compiled code.

    Args:
        array: Finite numbers of any type and shape, or a nested sequence of them. A zero completes the last byte of an
            odd count.
        signed: Round to INT4; else to UINT4.

    Returns:
        ``ceil(size / 2)`` bytes.

    Source: NVIDIA ModelOpt's function of this name, which rounds ties away from zero; this one rounds them to even.

    Example:
        >>> pack_float32_to_4bit_cpp_based([2.5, 3.5], signed=False).tolist()
        [66]
    """
    return pack_float32_to_4bit_optimized(array, signed)


@jit(static_argnames="signed")
def _round_and_pack(x: Array, signed: bool) -> Array:
    low, high = integer.code_range(4, unsigned=not signed)
    return pack_int4(jnp.round(jnp.clip(x.astype(jnp.float32), low, high)).astype(jnp.int8))


def pack_weights_to_int4(weight: Num[AnyArray, "..."]) -> UInt8[AnyArray, "..."]:
    """Bytes of a weight rounded to INT4: neighbours in C order share a byte, the first in the low half.

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
        raise JaxqError(f"the weight has shape {list(shape)}: give one whose first dimension is even")
    return pack_float32_to_4bit_optimized(array, signed=True).reshape(shape[0] // 2, *shape[1:])
