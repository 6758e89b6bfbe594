"""Arrays as the pages take and give them: numpy for numpy, JAX for JAX."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxq.errors import JaxqError
from jaxq.numerics.blocks import check_axis

AnyArray = Array | np.ndarray


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


def check_blocks(shape: tuple[int, ...], block_size: Any, axis: Any) -> tuple[int, int]:
    """Block size and axis of a weight of this shape, as ints."""
    axis = check_integer("quantize_axis", axis)
    return check_block_size(shape[check_axis(len(shape), axis)], block_size), axis
