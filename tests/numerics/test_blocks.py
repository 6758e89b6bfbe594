"""jaxq.numerics.blocks: splitting an axis into blocks of rows, and joining them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.numerics.blocks import (
    check_axis,
    count_blocks,
    join,
    max_magnitude,
    per_block,
    resolve_block_size,
    split,
    spread,
)

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
        pytest.param(5, 128, 5, 1, id="short_axis"),
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


@pytest.mark.parametrize(("ndim", "axis", "want"), [(2, 0, 0), (2, 1, 1), (2, -1, 1), (2, -2, 0), (3, -1, 2)], ids=str)
def test_check_axis(ndim, axis, want):
    assert check_axis(ndim, axis) == want


@pytest.mark.parametrize(("ndim", "axis"), [(2, 2), (2, -3), (1, 1), (3, 7)], ids=str)
def test_an_axis_that_the_array_lacks_is_refused(ndim, axis):
    with pytest.raises(JaxqError, match=f"quantize_axis is {axis}: an array of {ndim} dimensions"):
        check_axis(ndim, axis)


@pytest.mark.parametrize(("shape", "block_size", "axis"), LAYOUTS)
def test_split_holds_consecutive_rows_and_fills_with_zeros(shape, block_size, axis):
    w = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    place, dim = range(w.ndim)[axis], shape[axis]
    block = dim if block_size == -1 else min(block_size, dim)
    got = np.asarray(split(jnp.asarray(w), block_size, axis))
    assert got.shape == (*shape[:place], -(-dim // block), block, *shape[place + 1 :])
    for i in range(got.shape[place]):
        rows = np.take(got, i, axis=place)
        want = np.take(w, range(i * block, min(i * block + block, dim)), axis=place)
        rows_left = want.shape[place]
        np.testing.assert_array_equal(np.take(rows, range(rows_left), axis=place), want)
        assert (np.take(rows, range(rows_left, block), axis=place) == 0).all()


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


@pytest.mark.parametrize(("shape", "block_size", "axis"), LAYOUTS)
def test_spread_repeats_one_value_for_each_row_of_its_block(shape, block_size, axis):
    place, dim = range(len(shape))[axis], shape[axis]
    block = dim if block_size == -1 else min(block_size, dim)
    s_shape = (*shape[:place], -(-dim // block), *shape[place + 1 :])
    s = np.arange(np.prod(s_shape), dtype=np.float32).reshape(s_shape)
    want = np.take(s, [i // block for i in range(dim)], axis=place)
    np.testing.assert_array_equal(np.asarray(spread(jnp.asarray(s), dim, block_size, axis)), want)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_max_magnitude(axis, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), dtype).at[:, 0].set(0)
    amax = max_magnitude(x, axis)
    assert amax.dtype == dtype
    np.testing.assert_array_equal(np.asarray(amax), abs(np.asarray(x)).max(axis=axis))


def test_max_magnitude_of_special_values():
    x = jnp.array([[0.0, -0.0], [-jnp.inf, 1.0], [jnp.nan, 1.0], [-3.0, -4.0]])
    np.testing.assert_array_equal(np.asarray(max_magnitude(x)), [0, np.inf, np.nan, 4])


def test_the_dtype_is_kept():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint8):
        assert split(jnp.ones(5, dtype), 2).dtype == dtype
