"""jaxq.numerics.mx against Python's exact arithmetic: shared exponents and powers of two."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.numerics.mx import power_of_two, scale_down, scale_up, shared_exponent


def least_exponent(amax: float, element_max: float) -> int:
    """The least ``e`` from -127 with ``amax <= element_max * 2^e``."""
    return next(e for e in range(-127, 200) if Fraction(amax) <= Fraction(element_max) * Fraction(2) ** e)


@pytest.mark.parametrize("element_max", [448.0, 6.0])
def test_shared_exponent(element_max):
    exact = np.float32(element_max) * 2.0 ** np.arange(-120, 110, 7)
    amax = np.concatenate([exact, np.nextafter(exact, np.inf), np.nextafter(exact, 0)]).astype(np.float32)
    amax = np.concatenate([amax, np.geomspace(1e-37, 3e38, 200), np.random.default_rng(0).uniform(0, 9, 200)])
    amax = amax.astype(np.float32)
    want = [least_exponent(float(a), element_max) for a in amax]
    assert shared_exponent(jnp.asarray(amax), element_max).tolist() == want


def test_zero_gets_the_least_exponent():
    assert shared_exponent(jnp.array([0.0]), 448.0).tolist() == [-127]


def test_power_of_two():
    e = np.arange(-126, 128)
    np.testing.assert_array_equal(np.asarray(power_of_two(jnp.asarray(e, jnp.int32))), 2.0**e)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "axis"), [((64, 3), 0), ((70, 3), 0), ((3, 70), 1), ((2, 70, 3), -2)], ids=str)
def test_scaling_is_exact_and_back(shape, axis, dtype):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=shape), dtype)
    place, dim = range(len(shape))[axis], shape[axis]
    e = rng.integers(-20, 20, size=(*shape[:place], -(-dim // 32), *shape[place + 1 :]))
    every_e = np.take(e, [i // 32 for i in range(dim)], axis=place)
    down = scale_down(w, jnp.asarray(e, jnp.int32), axis=axis)
    assert down.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(down), np.asarray(w, np.float64) / 2.0**every_e)
    np.testing.assert_array_equal(
        np.asarray(scale_up(down, jnp.asarray(e, jnp.int32), axis=axis)), np.asarray(w, np.float32)
    )


@pytest.mark.parametrize("e", [-127, -126, 0, 126])
def test_the_ends_of_the_exponents(e):
    """``2^-127`` is no normal number: `scale_up` takes two steps."""
    q = jnp.array([[448.0], [-6.0]])
    up = scale_up(q, jnp.array([[e]], jnp.int32)) if e < 120 else scale_up(q / 512, jnp.array([[e]], jnp.int32))
    want = np.asarray(q, np.float64) / (1 if e < 120 else 512) * 2.0**e
    np.testing.assert_array_equal(np.asarray(up), want.astype(np.float32))
    assert jnp.array_equal(scale_down(up, jnp.array([[e]], jnp.int32)), q / (1 if e < 120 else 512))


def test_vmap_is_a_loop():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64, 3)), jnp.float32)
    e = jnp.asarray(np.random.default_rng(1).integers(-9, 9, size=(4, 2, 3)), jnp.int32)
    want = np.stack([np.asarray(scale_down(one, power)) for one, power in zip(w, e, strict=True)])
    np.testing.assert_array_equal(np.asarray(jax.vmap(scale_down)(w, e)), want)
