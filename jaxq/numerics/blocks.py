"""Split an axis of an array into blocks of consecutive rows, and join them again."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from jaxq.errors import JaxqError
from jaxq.numerics.sharding import whole


def resolve_block_size(dim: int, block_size: int) -> int:
    """Rows in a block: ``block_size`` itself, or the whole axis for -1 (per channel) and for larger blocks.

    Args:
        dim: Length of the axis that is split, at least 1.
        block_size: Rows a block, at least 1, or -1 for one block that spans the axis.

    Raises:
        JaxqError: ``block_size`` is 0 or below -1.

    Example:
        >>> [resolve_block_size(300, block_size) for block_size in (128, -1, 512)]
        [128, 300, 300]
    """
    if block_size == -1:
        return dim
    if block_size < 1:
        raise JaxqError(f"block_size is {block_size}: give a positive number of rows, or -1 for one block per channel")
    return max(1, min(block_size, dim))


def count_blocks(dim: int, block_size: int) -> int:
    """Number of blocks on an axis: ``ceil(dim / block_size)``; the last block may be ragged.

    Example:
        >>> count_blocks(300, 128)
        3
    """
    return -(-dim // resolve_block_size(dim, block_size))


def check_axis(ndim: int, axis: int) -> int:
    """The axis as a non-negative number.

    Raises:
        JaxqError: the array has no such axis.

    Example:
        >>> check_axis(2, -1)
        1
    """
    if not -ndim <= axis < ndim:
        raise JaxqError(f"quantize_axis is {axis}: an array of {ndim} dimensions has axes {-ndim} to {ndim - 1}")
    return axis % ndim


def split(w: Shaped[Array, "..."], block_size: int, axis: int = 0) -> Shaped[Array, "..."]:
    """Blocks of ``w``: the axis ``[dim]`` becomes two, ``[n_blocks, block]``; a ragged end is padded with zeros.

    Args:
        w: Array of any rank and dtype.
        block_size: Rows a block, or -1 for one block.
        axis: The axis to split.

    Example:
        >>> split(jnp.arange(5), 2).tolist()
        [[0, 1], [2, 3], [4, 0]]
    """
    axis = check_axis(w.ndim, axis)
    dim = w.shape[axis]
    block = resolve_block_size(dim, block_size)
    blocks = count_blocks(dim, block_size)
    w = whole(w, axis)  # blocks may lie across the borders of shards
    if blocks * block != dim:
        pads = [(0, 0)] * w.ndim
        pads[axis] = (0, blocks * block - dim)
        w = jnp.pad(w, pads)
    return w.reshape(*w.shape[:axis], blocks, block, *w.shape[axis + 1 :])


def join(blocks: Shaped[Array, "..."], dim: int, axis: int = 0) -> Shaped[Array, "..."]:
    """The inverse of `split`: axes ``[n_blocks, block]`` at ``axis`` become ``[dim]``, without the padding.

    Example:
        >>> join(split(jnp.arange(5), 2), 5).tolist()
        [0, 1, 2, 3, 4]
    """
    shape = blocks.shape
    axis = check_axis(blocks.ndim - 1, axis)
    blocks = whole(blocks, axis, axis + 1)
    flat = blocks.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    return flat if flat.shape[axis] == dim else lax.slice_in_dim(flat, 0, dim, axis=axis)


def max_magnitude(blocks: Float[Array, "..."], axis: int = 1) -> Float[Array, "..."]:
    """``max |x|`` along an axis, in ``blocks``' dtype.

    Computed as the greater of ``max x`` and ``-min x``: for ``max |x|`` XLA's CPU backend first writes ``|x|`` to a new
    array, which takes several times as long.

    Example:
        >>> max_magnitude(jnp.array([[1.0, -3.0], [2.0, 0.0]])).tolist()
        [3.0, 2.0]
    """
    return jnp.maximum(jnp.max(blocks, axis=axis), -jnp.min(blocks, axis=axis))


def per_block(s: Shaped[Array, "..."], axis: int = 0) -> Shaped[Array, "..."]:
    """One value a block, shaped to broadcast against the result of `split`: ``[n_blocks]`` -> ``[n_blocks, 1]``."""
    return jnp.expand_dims(s, check_axis(s.ndim, axis) + 1)


def spread(s: Shaped[Array, "..."], dim: int, block_size: int, axis: int = 0) -> Shaped[Array, "..."]:
    """Repeats each block's value for every row of the block: ``[n_blocks]`` -> ``[dim]``.

    XLA fuses the repetition, so no array of that size is made. `split` would copy a weight with a ragged last block up
    to twice.

    Example:
        >>> spread(jnp.array([1, 2]), 3, block_size=2).tolist()
        [1, 1, 2]
    """
    axis = check_axis(s.ndim, axis)
    shape = (*s.shape[: axis + 1], resolve_block_size(dim, block_size), *s.shape[axis + 1 :])
    return join(jnp.broadcast_to(per_block(s, axis), shape), dim, axis)
