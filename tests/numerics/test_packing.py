"""jaxq.numerics.packing: two 4-bit codes a byte, the first in the low half."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.numerics.packing import pack_int4, unpack_int4

SHAPES = [
    pytest.param((8,), id="even"),
    pytest.param((7,), id="odd"),
    pytest.param((3, 5), id="rows_that_share_bytes"),
]


def random_codes(shape: tuple[int, ...], signed: bool) -> np.ndarray:
    low, dtype = (-8, np.int8) if signed else (0, np.uint8)
    return np.random.default_rng(0).integers(low, low + 16, size=shape).astype(dtype)


def reference_bytes(codes: np.ndarray) -> list[int]:
    """In Python's integers, one byte at a time."""
    halves = [int(c) % 16 for c in codes.ravel()] + [0] * (codes.size % 2)
    return [low + 16 * high for low, high in zip(halves[::2], halves[1::2], strict=True)]


@pytest.mark.parametrize("signed", [True, False], ids=["int4", "uint4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_and_back(shape, signed):
    codes = random_codes(shape, signed)
    packed = pack_int4(jnp.asarray(codes))
    assert packed.dtype == jnp.uint8
    assert packed.tolist() == reference_bytes(codes)
    back = unpack_int4(packed, shape, signed)
    assert back.dtype == (jnp.int8 if signed else jnp.uint8)
    np.testing.assert_array_equal(np.asarray(back), codes)


def test_every_pair_of_signed_codes():
    low, high = np.meshgrid(np.arange(-8, 8), np.arange(-8, 8))
    codes = np.stack([low.ravel(), high.ravel()], axis=1).astype(np.int8)
    packed = pack_int4(jnp.asarray(codes))
    assert sorted(packed.tolist()) == list(range(256))
    np.testing.assert_array_equal(np.asarray(unpack_int4(packed, codes.shape, signed=True)), codes)


def test_an_odd_count_is_filled_with_zero():
    assert pack_int4(jnp.array([-1], jnp.int8)).tolist() == [0x0F]


def test_wider_integers_hold_codes_too():
    assert pack_int4(jnp.array([1, -1, 7, -8], jnp.int32)).tolist() == [0xF1, 0x87]
