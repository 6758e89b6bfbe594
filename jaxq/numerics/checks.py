"""Answers to wrong arguments: checks that run before a compiled function, where arrays still have values.

Each check takes the name of a parameter and its value, and raises an error that says what to give instead; see
`jaxq.numerics.jit`. Under a user's own `jit`, `vmap` or `grad` arrays have no values, so only types are checked there.
"""

from operator import index
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxq.errors import JaxqError


def array(name: str, value: Any) -> None:
    """Checks that a value is an array of JAX or numpy; scalars of numpy are arrays too.

    Raises:
        JaxqError: it is a list, a tuple, a number, ...

    Example:
        >>> array("w", [[1.0, 2.0]])
        Traceback (most recent call last):
        jaxq.errors.JaxqError: w is a list: give an array of JAX or numpy, such as jnp.asarray(w)
    """
    # Shapes and types alone, as `eval_shape` has them, are traced like arrays.
    if not isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        kind = type(value).__name__
        rest = f", such as jnp.asarray({name})" if isinstance(value, list | float | int) else ""
        raise JaxqError(f"{name} is {_article(kind)} {kind}: give an array of JAX or numpy{rest}")


def optional_array(name: str, value: Any) -> None:
    """`array`, or None."""
    if value is not None:
        array(name, value)


def number(name: str, value: Any) -> None:
    """Checks that a value is a number or an array of numbers, as a clip ratio or a damping is.

    Raises:
        JaxqError: it is a text, a list, a truth value, ...
    """
    if isinstance(value, bool) or not isinstance(value, float | int):
        array(name, value)


def weight(name: str, value: Any) -> None:
    """Checks that a value is an array of floats, all of them finite where they are known.

    Raises:
        JaxqError: it is no array, its type is no float, or it holds NaN or infinity.

    Example:
        >>> weight("w", jnp.array([1.0, jnp.nan]))
        Traceback (most recent call last):
        jaxq.errors.JaxqError: w holds 1 number that is NaN or infinite: a weight has to be finite; mend it first
    """
    array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise JaxqError(f"the weight has type {value.dtype}: give float32, float16 or bfloat16")
    if not _has_values(value) or bool(_all_finite(value)):
        return
    count = int(jnp.sum(~jnp.isfinite(value)))
    numbers = "1 number that is" if count == 1 else f"{count} numbers that are"
    raise JaxqError(f"{name} holds {numbers} NaN or infinite: a weight has to be finite; mend it first")


def integers(name: str, value: Any) -> None:
    """Checks that a value is an array of integers, as codes are.

    Raises:
        JaxqError: it is no array, or its type is no integer.
    """
    array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise JaxqError(f"{name} has type {value.dtype}: give codes as integers, such as int8 or uint8")


def whole_number(name: str, value: Any) -> None:
    """Checks that a value is an integer of Python or numpy.

    Raises:
        JaxqError: it is a float, a text, a truth value, an array, ...

    Example:
        >>> whole_number("block_size", 32.0)
        Traceback (most recent call last):
        jaxq.errors.JaxqError: block_size is 32.0: give an integer, such as 32
    """
    try:
        if isinstance(value, bool | np.bool_ | jax.Array | np.ndarray):
            raise TypeError
        index(value)
    except TypeError:
        rest = f", such as {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise JaxqError(f"{name} is {value!r}: give an integer{rest}") from None


def positive(name: str, value: Any, meaning: str) -> None:
    """Checks that a value is an integer of at least 1; ``meaning`` says of what it is the number.

    Raises:
        JaxqError: it is no integer, or below 1.
    """
    whole_number(name, value)
    if value < 1:
        raise JaxqError(f"{name} is {value}: give {meaning}, at least 1")


def shape(name: str, value: Any) -> None:
    """Checks that a value is a tuple of integers.

    Raises:
        JaxqError: it is a list, a number, or a tuple with another thing in it.
    """
    if not isinstance(value, tuple):
        raise JaxqError(f"{name} is {value!r}: give a tuple of integers, such as (4096, 4096)")
    for length in value:
        whole_number(f"a number in {name}", length)


def square(name: str, value: Any) -> None:
    """Checks that a value is a second moment, [c_in, c_in].

    Raises:
        JaxqError: it is no array or not square, as tokens and whole `Moments` are not.
    """
    if hasattr(value, "h"):
        raise JaxqError(f"{name} is {type(value).__name__}, which holds more: give its second moment, moments.h")
    array(name, value)
    if len(value.shape) != 2 or value.shape[0] != value.shape[1]:
        raise JaxqError(
            f"{name} has shape {list(value.shape)}: give second moments [c_in, c_in], not tokens; "
            "jaxq.finish(jaxq.accumulate(sums, tokens, keep)).h makes them"
        )


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiouAEIOU" else "a"


def _has_values(x: Any) -> bool:
    """True for an array whose numbers this process can read: traced arrays have none yet."""
    if isinstance(x, Tracer | jax.ShapeDtypeStruct):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    # Both ends are NaN where any number is: two reductions, which XLA's CPU backend computes faster than `isfinite`.
    return jnp.isfinite(jnp.min(x, initial=0)) & jnp.isfinite(jnp.max(x, initial=0))
