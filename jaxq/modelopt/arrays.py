"""Arrays as the two pages take and return them: numpy for numpy, JAX for JAX; and checks of plain arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxq.errors import JaxqError
from jaxq.numerics.blocks import check_axis

AnyArray = Array | np.ndarray


def as_given(result: Any, *inputs: Any) -> Any:
    """The result in the kind of its inputs: JAX arrays if one input is a JAX array, else writable numpy arrays.

    Args:
        result: A tree of JAX arrays.
        *inputs: The arrays, lists or numbers that the result was computed from.

    Example:
        >>> import jax.numpy as jnp
        >>> type(as_given(jnp.ones(2), [1.0, 2.0])).__name__
        'ndarray'
    """
    if any(isinstance(a, jax.Array) for a in inputs):
        return result
    # A view of JAX's memory would be read-only, so the result is copied.
    return jax.tree.map(lambda a: a if isinstance(a, Tracer) else np.array(a)[()], result)


def as_array(value: Any, name: str = "the weight") -> AnyArray:
    """The value as an array: numpy and JAX arrays stay as they are, nested lists and numbers become numpy arrays.

    Args:
        value: An array, or what numpy makes an array of.
        name: The argument's name in errors.

    Raises:
        JaxqError: the value has no numbers, or rows of different lengths.

    Example:
        >>> as_array([[1.0, 2.0]]).shape
        (1, 2)
    """
    if isinstance(value, jax.Array | np.ndarray):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise JaxqError(f"{name} is no array: {str(error).partition('.')[0]}") from error
    if array.dtype.kind in "OSUmM":
        raise JaxqError(f"{name} is of type {type(value).__name__} without numbers: give an array, or lists of numbers")
    return array


def as_floats(value: Any, name: str = "the weight") -> AnyArray:
    """`as_array` of numbers: floats stay as they are, integers become float32, whose magnitudes do not wrap around.

    Args:
        value: An array, or what numpy makes an array of. Integers above 2^24 are rounded.
        name: The argument's name in errors.

    Raises:
        JaxqError: the value has no numbers, or its type is bool or complex.

    Example:
        >>> as_floats(np.array([-128], np.int8)).dtype.name
        'float32'
    """
    array = as_array(value, name)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise JaxqError(f"{name} has type {array.dtype}: give floats or integers")
    return array.astype(np.float32)


def check_integer(name: str, value: Any) -> int:
    """The value as an int.

    Raises:
        JaxqError: the value is no integer.

    Example:
        >>> check_integer("block_size", np.int64(16))
        16
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise JaxqError(f"{name} is {value!r}: give an integer")
    return int(value)


def check_block_size(dim: int, block_size: Any) -> int:
    """The block size as an int, for an axis of length ``dim``.

    Raises:
        JaxqError: the block size is no integer, or it is -1 and the axis is empty.
    """
    size = check_integer("block_size", block_size)
    if size == -1 and not dim:
        raise JaxqError("block_size is -1 and the axis has no element: give a weight that is not empty")
    return size


def check_blocks(shape: tuple[int, ...], block_size: Any, axis: Any) -> tuple[int, int]:
    """Block size and axis as ints, for a weight of this shape.

    Raises:
        JaxqError: one of them is no integer, the weight lacks the axis, or the block size is -1 and the axis is empty.
    """
    axis = check_integer("quantize_axis", axis)
    return check_block_size(shape[check_axis(len(shape), axis)], block_size), axis
