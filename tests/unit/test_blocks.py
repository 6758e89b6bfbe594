"""jaxq.blocks: splitting an axis into blocks of rows, and joining them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.blocks import check_axis, count_blocks, join, per_block, resolve_block_size, split
from jaxq.errors import JaxqError

LAYOUTS = [
    pytest.param((16, 3), 8, 0, id="exact"),
    pytest.param((20, 3), 8, 0, id="ragged"),
    pytest.param((20, 3), -1, 0, id="per_channel"),
    pytest.param((20, 3), 32, 0, id="block_longer_than_axis"),
    pytest.param((3, 20), 8, 1, id="axis_1"),
    pytest.param((3, 20), 8, -1, id="last_axis"),
    pytest.param((2, 20, 3), 8, -2, id="three_axes"),
    pytest.param((20,), 8, 0, id="one_axis"),
]


@pytest.mark.parametrize(
    ("dim", "block_size", "rows", "blocks"),
    [
        pytest.param(256, 128, 128, 2, id="exact"),
        pytest.param(257, 128, 128, 3, id="one_row_over"),
        pytest.param(300, -1, 300, 1, id="per_channel"),
        pytest.param(5, 128, 128, 1, id="short_axis"),
        pytest.param(5, 1, 1, 5, id="one_row"),
    ],
)
def test_sizes(dim, block_size, rows, blocks):
    assert resolve_block_size(dim, block_size) == rows
    assert count_blocks(dim, block_size) == blocks


@pytest.mark.parametrize("block_size", [0, -2, -128])
@pytest.mark.parametrize("function", [resolve_block_size, count_blocks])
def test_bad_block_sizes_are_refused(function, block_size):
    with pytest.raises(JaxqError, match=f"block_size is {block_size}:"):
        function(20, block_size)


@pytest.mark.parametrize(("ndim", "axis", "found"), [(2, 0, 0), (2, 1, 1), (2, -1, 1), (2, -2, 0), (3, -1, 2)], ids=str)
def test_check_axis(ndim, axis, found):
    assert check_axis(ndim, axis) == found


@pytest.mark.parametrize(("ndim", "axis"), [(2, 2), (2, -3), (1, 1), (3, 7)], ids=str)
def test_an_axis_that_the_array_lacks_is_refused(ndim, axis):
    with pytest.raises(JaxqError, match=f"quantize_axis is {axis}: an array of {ndim} dimensions"):
        check_axis(ndim, axis)


@pytest.mark.parametrize(("shape", "block_size", "axis"), LAYOUTS)
def test_split_holds_consecutive_rows_and_fills_with_zeros(shape, block_size, axis):
    w = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    place, dim = range(w.ndim)[axis], shape[axis]
    block = dim if block_size == -1 else block_size
    got = np.asarray(split(jnp.asarray(w), block_size, axis))
    assert got.shape == (*shape[:place], -(-dim // block), block, *shape[place + 1 :])
    for i in range(got.shape[place]):
        rows = np.take(got, i, axis=place)
        want = np.take(w, range(i * block, min(i * block + block, dim)), axis=place)
        held = want.shape[place]
        np.testing.assert_array_equal(np.take(rows, range(held), axis=place), want)
        assert (np.take(rows, range(held, block), axis=place) == 0).all()


@pytest.mark.parametrize(("shape", "block_size", "axis"), LAYOUTS)
def test_join_is_the_inverse_of_split(shape, block_size, axis):
    w = jnp.arange(np.prod(shape), dtype=jnp.int32).reshape(shape)
    joined = join(split(w, block_size, axis), shape[axis], axis)
    assert joined.dtype == w.dtype
    np.testing.assert_array_equal(np.asarray(joined), np.asarray(w))


@pytest.mark.parametrize(("shape", "block_size", "axis"), LAYOUTS)
def test_per_block_spreads_one_value_over_a_block(shape, block_size, axis):
    place = range(len(shape))[axis]
    blocks = split(jnp.ones(shape), block_size, axis)
    values = np.arange(blocks.size // blocks.shape[place + 1], dtype=np.float32)
    values = values.reshape(*blocks.shape[: place + 1], *blocks.shape[place + 2 :])
    spread = np.asarray(jnp.ones_like(blocks) * per_block(jnp.asarray(values), axis))
    for row in range(blocks.shape[place + 1]):
        np.testing.assert_array_equal(np.take(spread, row, axis=place + 1), values)


def test_the_dtype_is_kept():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint8):
        assert split(jnp.ones(5, dtype), 2).dtype == dtype
