"""jaxq.numerics.float4 against ml_dtypes' tables and numpy: codes, and NVFP4's two scales."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxq.numerics.float4 import block_ratios, decode_e2m1, divide_by_scales, encode_e2m1, round_e4m3, tensor_scale

VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
DTYPES = ["float32", "float16", "bfloat16"]


def weight(shape: tuple[int, ...], dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)


def repeat(s: np.ndarray, w: jax.Array, block_size: int, axis: int) -> np.ndarray:
    """One value a block -> one a weight."""
    return np.take(s, [i // block_size for i in range(w.shape[axis])], axis=axis)


def test_decode_knows_all_codes():
    got = decode_e2m1(jnp.arange(16, dtype=jnp.uint8))
    assert got.dtype == jnp.float32
    assert got.tolist() == [*VALUES, *(-v for v in VALUES)]


def test_codes_of_the_values_are_themselves():
    codes = jnp.arange(16, dtype=jnp.uint8)
    assert encode_e2m1(decode_e2m1(codes)).tolist() == [*range(8), 0, *range(9, 16)]  # of negative zero: 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearest_even_and_cut_off(dtype):
    """Every multiple of 1/64 up to 8, ties among them, and its neighbours in float32."""
    grid = np.arange(-512, 513, dtype=np.float32) / 64
    if dtype == "float32":
        full = grid[grid != 0]  # the neighbours of zero are subnormal: XLA takes them for zero
        grid = np.concatenate([grid, np.nextafter(full, np.float32(9)), np.nextafter(full, np.float32(-9))])
    x = jnp.asarray(grid, dtype)
    want = np.clip(np.asarray(x, np.float32), -6, 6).astype(ml_dtypes.float4_e2m1fn)
    got = encode_e2m1(x)
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(np.asarray(decode_e2m1(got)), want.astype(np.float32))
    assert (np.asarray(got) >= 8).tolist() == (np.asarray(x, np.float32) < 0).tolist()


def test_numbers_without_bounds_saturate():
    assert encode_e2m1(jnp.array([1e30, -1e30, jnp.inf, -jnp.inf])).tolist() == [7, 15, 7, 15]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_scale(dtype):
    w = weight((20, 3), dtype)
    got = tensor_scale(w)
    assert got.shape == () and got.dtype == jnp.float32
    assert float(got) == np.float32(abs(np.asarray(w, np.float32)).max() / np.float32(2688))


@pytest.mark.parametrize("w", [jnp.zeros((4, 3)), jnp.zeros((0, 3))], ids=["zeros", "empty"])
def test_tensor_scale_without_weights_is_one(w):
    assert float(tensor_scale(w)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((40, 3), 0), ((3, 40), 1), ((2, 40, 3), -2)], ids=str)
def test_block_ratios(shape, axis, dtype):
    w = weight(shape, dtype)
    s2 = tensor_scale(w)
    place = range(w.ndim)[axis]
    rows = np.moveaxis(abs(np.asarray(w, np.float32)), place, 0)
    amax = np.moveaxis(np.stack([rows[i : i + 16].max(axis=0) for i in (0, 16, 32)]), 0, place)
    want = amax * np.float32(0.75) / (np.float32(6) * np.float32(s2))
    np.testing.assert_array_equal(np.asarray(block_ratios(w, s2, axis=axis, clip_ratio=0.75)), want)


def test_a_block_of_zeros_has_ratio_one():
    assert block_ratios(jnp.zeros((20, 2)), jnp.float32(0.5)).tolist() == [[1, 1], [1, 1]]


def test_round_e4m3_is_nearest_even_between_its_ends():
    ratio = np.concatenate([np.geomspace(2**-9, 448, 5000), [1e-9, 2**-10, 1e4]]).astype(np.float32)
    want = np.clip(ratio, 2**-9, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(np.asarray(round_e4m3(jnp.asarray(ratio))), want)


@pytest.mark.parametrize("axis", [0, 1])
def test_division_is_ieee_division(axis):
    """By the rounded product of the scales; inside one jit with what makes them too."""
    w = weight((40, 40))
    s2 = tensor_scale(w)
    s = round_e4m3(block_ratios(w, s2, axis=axis)).astype(jnp.float32)
    want = np.asarray(w) / repeat(np.asarray(s) * np.float32(s2), w, 16, axis)
    np.testing.assert_array_equal(np.asarray(divide_by_scales(w, s, s2, axis=axis)), want)

    @jax.jit
    def together(w: jax.Array) -> jax.Array:
        s2 = tensor_scale(w)
        s = round_e4m3(block_ratios(w, s2, axis=axis))
        return encode_e2m1(divide_by_scales(w, s.astype(jnp.float32), s2, axis=axis))

    np.testing.assert_array_equal(np.asarray(together(w)), np.asarray(encode_e2m1(jnp.asarray(want))))
