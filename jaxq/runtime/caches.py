"""Inputs with keys, values and states of earlier tokens: found by name, fed as before the first token."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.graph.nodes import attribute

_CACHE = re.compile(r"(^|[._/])past([._/\d]|$)|(^|[._/])(k|v|kv|key|value)_?cache|cache_(k|v|key|value)")
_STATE = re.compile(r"conv|recurrent|ssm|state")
_LENGTH = re.compile(r"past|seq|len|total|cache_size", re.IGNORECASE)
_BATCH = re.compile(r"batch", re.IGNORECASE)

# Operators with caches among their inputs: the caches' indices, and the attribute with the first input's heads.
_ATTENTION = {"GroupQueryAttention": ((3, 4), "num_heads"), "MultiHeadAttention": ((6, 7), "num_heads")}

Dims = Sequence[int | str | None]


def is_cache(name: str) -> bool:
    """True if an input holds keys, values or states of earlier tokens, by its name.

    Example:
        >>> [is_cache(n) for n in ("past_key_values.0.key", "past_3", "key_cache.1", "past.0.conv", "input_ids")]
        [True, True, True, True, False]
    """
    return bool(_CACHE.search(name.lower())) and not name.lower().endswith(("lengths", "length"))


def empty_cache(name: str, dtype: np.dtype, dims: Dims | None, batch: int, length: int = 0) -> np.ndarray:
    """The cache of a batch before its first token: keys and values of length 0, states of zeros.

    Args:
        name: The input's name.
        dtype: Its type.
        dims: Its shape: numbers, names such as "past_sequence_length", None where the file says nothing. The axis that
            counts tokens is the one named so (past, sequence, length, total), else the last that is not a number; the
            batch is the one named so, else the first that is not a number. States (convolutions, recurrent layers)
            have no axis of tokens.
        batch: Number of samples.
        length: Size of the axis that counts tokens, where that is fixed; see `window_size`.

    Raises:
        JaxqError: the shape leaves the size of an axis open, or allows no empty cache.

    Example:
        >>> empty_cache("past_key_values.0.key", np.dtype("float32"), ("batch", 4, "past", 64), 2).shape
        (2, 4, 0, 64)
    """
    give = f"give an npz file with input_ids and an array for {name!r} and for each other cache"
    if dims is None or not 3 <= len(dims) <= 5:
        rank = "an unknown shape" if dims is None else f"{len(dims)} dimensions"
        raise JaxqError(f"the cache {name!r} has {rank}, and jaxq feeds those with 3, 4 or 5: {give}")
    state = bool(_STATE.search(name.lower()))
    batch_axis = _batch_axis(dims)
    sequence_axis = None if state else _sequence_axis(dims, batch_axis)
    shown = _format_dims(dims)
    if sequence_axis is None and not state and 0 not in dims:
        raise JaxqError(f"the cache {name!r} of shape {shown} has a fixed length, so it cannot be empty: {give}")
    sizes = []
    for axis, size in enumerate(dims):
        if axis == sequence_axis:
            sizes.append(length)
        elif axis == batch_axis:
            sizes.append(batch)
        elif isinstance(size, int):
            sizes.append(size)
        else:
            raise JaxqError(f"the cache {name!r} of shape {shown} leaves open the size of axis {axis}: {give}")
    return np.zeros(sizes, dtype)


def cache_length(array: np.ndarray, dims: Dims | None) -> int:
    """Number of earlier tokens in a cache; 0 where its shape does not say, and for states.

    Example:
        >>> cache_length(np.zeros((2, 4, 7, 64)), ("batch", 4, "past", 64))
        7
    """
    axis = None if dims is None else _sequence_axis(dims, _batch_axis(dims))
    return 0 if axis is None or axis >= array.ndim else array.shape[axis]


def check_caches(given: Mapping[str, np.ndarray], dims: Mapping[str, Dims | None], samples: int) -> None:
    """Refuses caches that do not fit a model or each other.

    Args:
        given: Caches of the data, of the model's numbers of axes.
        dims: Shapes of the model's caches, as `empty_cache` takes them; caches without a shape here are not checked.
        samples: Number of samples.

    Raises:
        JaxqError: a cache has another size or number of samples than the model says, or two caches differ along axes
            of one name. Axes that count tokens and have no name count as having one name.

    Example:
        >>> check_caches({"past.0": np.zeros((2, 3, 7, 64))}, {"past.0": ("batch", 4, "past", 64)}, samples=2)
        Traceback (most recent call last):
        jaxq.errors.JaxqError: the cache 'past.0' has shape [2, 3, 7, 64] for 2 samples:
        the model needs [batch, 4, past, 64]
    """
    seen: dict[tuple[str | None, bool], tuple[str, int]] = {}
    for name, array in given.items():
        expected_dims = dims.get(name)
        if expected_dims is None:
            continue
        batch = _batch_axis(expected_dims)
        tokens = _sequence_axis(expected_dims, batch)
        for axis, (size, actual) in enumerate(zip(expected_dims, array.shape, strict=True)):
            counted = axis == batch and isinstance(size, str) and bool(_BATCH.search(size))
            if actual != (size if isinstance(size, int) else samples if counted else actual):
                raise JaxqError(
                    f"the cache {name!r} has shape {list(array.shape)} for {samples} samples: "
                    f"the model needs {_format_dims(expected_dims)}"
                )
            if isinstance(size, str) or (size is None and axis == tokens):
                # an encoder has other tokens than a decoder; without names of axes only the input's name shows it
                first, expected = seen.setdefault((size, size is None and "encoder" in name), (name, actual))
                if actual != expected:
                    axes = "tokens" if axis == tokens else f"{size!r}"
                    raise JaxqError(
                        f"the caches {first!r} and {name!r} differ in {axes}: {expected} and {actual}; they must agree"
                    )


def cache_dims(value: ir.Value) -> tuple[int | str | None, ...] | None:
    """Shape of a cache; sizes that the input's own shape leaves open come from the nodes that read it."""
    if value.shape is None:
        return None
    dims: list[int | str | None] = [size if isinstance(size, int) else size.value for size in value.shape]
    for node, index in value.uses():
        if node.op_type == "Concat":  # with keys or values of this call
            for other in node.inputs:
                shape = other.shape if other is not None and other.shape is not None else ()
                if len(shape) == len(dims):
                    joined = int(attribute(node, "axis", 0)) % len(dims)
                    dims = [
                        new if i != joined and isinstance(new, int) else old
                        for i, (old, new) in enumerate(zip(dims, shape, strict=True))
                    ]
        elif dims and not isinstance(dims[-1], int):
            dims[-1] = _head_size(node, index) or dims[-1]
    return tuple(dims)


def _head_size(node: ir.Node, index: int) -> int | None:
    """Size of a head of an attention node that reads a cache as its input ``index``; None where it is not known."""
    places, heads = _ATTENTION.get(node.op_type, ((), ""))
    if node.domain != "com.microsoft" or index not in places or node.inputs[0] is None:
        return None
    number, width = int(attribute(node, heads, 0)), _width(node.inputs[0])
    if node.inputs[1] is None:  # queries, keys and values are one input
        number += 2 * int(attribute(node, "kv_num_heads", number))
    return width // number if width and number and width % number == 0 else None


def window_size(value: ir.Value) -> int:
    """Fixed length of a cache that is the buffer of a sliding window; 0 for any other cache."""
    readers = [node for node, _ in value.uses() if node.op_type == "GroupQueryAttention"]
    windows = [int(attribute(n, "local_window_size", 0)) for n in readers if attribute(n, "sliding_window_cache", 0)]
    return max(windows, default=0)


def _width(value: ir.Value) -> int | None:
    """Size of the last axis, from the value's shape or from the weight that it is a product of; None if unknown."""
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    if isinstance(last, int):
        return last
    node = value.producer()
    if node is None or node.op_type not in ("MatMul", "Add"):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None
    return int(weight.const_value.shape.numpy()[-1])


def _batch_axis(dims: Dims) -> int | None:
    named = [i for i, size in enumerate(dims) if isinstance(size, str) and _BATCH.search(size) and "head" not in size]
    free = [i for i, size in enumerate(dims) if not isinstance(size, int) and not _is_length(size)]
    return next(iter(named + [i for i in free if not _names_head(dims[i])]), None)


def _sequence_axis(dims: Dims, batch_axis: int | None) -> int | None:
    named = [i for i, size in enumerate(dims) if _is_length(size)]
    free = [i for i, size in enumerate(dims) if not isinstance(size, int) and i != batch_axis and not _names_head(size)]
    return named[-1] if named else free[-1] if free else None


def _is_length(size: int | str | None) -> bool:
    return isinstance(size, str) and not _BATCH.search(size) and bool(_LENGTH.search(size))


def _names_head(size: int | str | None) -> bool:
    return isinstance(size, str) and any(word in size.lower() for word in ("head", "dim", "hidden"))


def _format_dims(dims: Dims) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in dims)}]"
