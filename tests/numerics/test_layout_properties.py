"""Blocks are joined as they were split, and bytes unpacked as they were packed."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxq.numerics.blocks import count_blocks, join, resolve_block_size, split
from jaxq.numerics.packing import pack_int4, unpack_int4


@settings(max_examples=max(100, settings().max_examples))
@given(dim=st.integers(1, 10**6), block_size=st.integers(1, 10**6) | st.just(-1))
def test_blocks_cover_the_axis_and_no_more(dim, block_size):
    block, count = resolve_block_size(dim, block_size), count_blocks(dim, block_size)
    assert (count - 1) * block < dim <= count * block


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
    block_size=st.sampled_from([-1, 1, 2, 3, 8]),
    axis=st.integers(-3, 2),
)
def test_join_is_the_inverse_of_split(shape, block_size, axis):
    axis = (axis + 3) % len(shape) - (len(shape) if axis < 0 else 0)
    w = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    blocks = split(jnp.asarray(w), block_size, axis)
    assert blocks.ndim == w.ndim + 1
    np.testing.assert_array_equal(np.asarray(join(blocks, shape[axis], axis)), w)


CODES = {
    signed: hnp.arrays(np.int8 if signed else np.uint8, (5, 3), elements=st.integers(low, low + 15))
    for signed, low in ((True, -8), (False, 0))
}


@given(codes=CODES[True])
def test_signed_codes_come_back(codes):
    packed = pack_int4(jnp.asarray(codes))
    assert packed.shape == (8,)
    np.testing.assert_array_equal(np.asarray(unpack_int4(packed, codes.shape, signed=True)), codes)


@given(codes=CODES[False])
def test_unsigned_codes_come_back(codes):
    packed = pack_int4(jnp.asarray(codes))
    np.testing.assert_array_equal(np.asarray(unpack_int4(packed, codes.shape, signed=False)), codes)


@given(packed=hnp.arrays(np.uint8, 8), signed=st.booleans())
def test_bytes_come_back(packed, signed):
    codes = unpack_int4(jnp.asarray(packed), (16,), signed)
    np.testing.assert_array_equal(np.asarray(pack_int4(codes)), packed)
