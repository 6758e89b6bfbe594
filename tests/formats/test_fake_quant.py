"""`fake_quant` rounds like the format, and has the gradient of clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq
from jaxq.formats.base import Scales
from jaxq.formats.registry import DTYPES, WeightFormat, make_format

# Ends of the codes in float64, written out here: half a step beyond the last one.
FLOAT_ENDS = {"nvfp4": 7.0, "mxfp4": 7.0, "mxfp8": 464.0}
CASES = [
    *(make_format(dtype) for dtype in DTYPES),
    make_format("int4", 16, full_range=True),
    make_format("int4", -1),
    make_format("int3", 24, full_range=True, scale_dtype="float8_e4m3fn"),
]
ROWS, COLUMNS = 72, 6  # ragged in blocks of 16 and 32


def weight(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)), jnp.float32)


def tight_scales(fmt: WeightFormat) -> Scales:
    """Scales of a narrower weight, so that a good part of the weights of `weight` are clipped."""
    return fmt.plain_scales(0.4 * weight(7))


def reference(w: jax.Array, fmt: WeightFormat, scales: Scales) -> tuple[np.ndarray, np.ndarray]:
    """The surrogate ``s (clip(w / s + zp, lo, hi) - zp)`` and the distance of its argument to the nearer end."""
    bits = int(fmt.dtype[-1])
    if fmt.dtype in FLOAT_ENDS:
        lo, hi = -FLOAT_ENDS[fmt.dtype], FLOAT_ENDS[fmt.dtype]
    elif fmt.dtype.startswith("u"):
        lo, hi = -0.5, 2**bits - 0.5
    else:
        lo, hi = -(2 ** (bits - 1)) - 0.5, 2 ** (bits - 1) - 0.5
    if fmt.dtype.startswith("mx"):
        step = 2.0 ** (np.asarray(scales.s, np.float64) - 127)
    else:
        step = np.asarray(scales.s, np.float64) * (1.0 if scales.s2 is None else float(scales.s2))
    block = ROWS if fmt.block_size == -1 else fmt.block_size
    step = np.repeat(step, block, axis=0)[:ROWS]
    zp = 0.0 if scales.zp is None else np.repeat(np.asarray(scales.zp, np.float64), block, axis=0)[:ROWS]
    codes = np.asarray(w, np.float64) / step + zp
    return step * (np.clip(codes, lo, hi) - zp), np.minimum(np.abs(codes - lo), np.abs(codes - hi))


@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_the_values_are_those_of_the_format(fmt):
    w = weight(0)
    np.testing.assert_array_equal(jaxq.fake_quant(w, fmt), fmt.round_trip(w))
    np.testing.assert_array_equal(jaxq.fake_quant(w, fmt, clip_ratio=0.8), fmt.round_trip(w, 0.8))
    scales = tight_scales(fmt)
    np.testing.assert_array_equal(jaxq.fake_quant(w, fmt, scales), fmt.dequantize(fmt.encoded(w, scales)))


@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_the_gradient_is_that_of_clipping(fmt):
    """Against differences of the surrogate in float64, both where weights are rounded and where they are clipped."""
    w, scales = weight(0), tight_scales(fmt)
    cotangent = np.random.default_rng(1).normal(size=w.shape).astype(np.float32)
    got = jax.grad(lambda w: jnp.vdot(jaxq.fake_quant(w, fmt, scales), cotangent))(w)

    shift = 1e-6
    up, margin = reference(np.asarray(w, np.float64) + shift, fmt, scales)  # pyright: ignore[reportArgumentType]
    down, _ = reference(np.asarray(w, np.float64) - shift, fmt, scales)  # pyright: ignore[reportArgumentType]
    slope = (up - down) / (2 * shift)
    away = margin > 1e-3  # an end itself has no slope
    assert away.mean() > 0.9
    assert (slope[away] > 0.5).any() and (slope[away] < 0.5).any()
    np.testing.assert_allclose(np.asarray(got)[away], (slope * cotangent)[away], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fmt", CASES, ids=str)
def test_plain_scales_have_no_gradient_and_clip_no_greatest_weight(fmt):
    w = weight(2)
    got = jax.grad(lambda w: jaxq.fake_quant(w, fmt).sum())(w)
    assert set(np.unique(got)) <= {0.0, 1.0}
    # Without full-range scales no weight is clipped; with them those of the other sign may be.
    if not getattr(fmt, "full_range", False):
        np.testing.assert_array_equal(got, np.ones_like(got))
    greatest = np.abs(np.asarray(w)).argmax(axis=0)
    np.testing.assert_array_equal(np.asarray(got)[greatest, range(COLUMNS)], 1.0)


def test_rounding_itself_has_no_gradient():
    """The codes under fixed scales, and the whole of MX and of float8's scales."""
    w, fmt = weight(3), make_format("int4", 16)
    scales = tight_scales(fmt)
    assert not np.any(jax.grad(lambda w: fmt.dequantize(fmt.encoded(w, scales)).sum())(w))
    assert np.all(jax.grad(lambda w: jaxq.fake_quant(w, fmt, fmt.plain_scales(w)).sum())(w))


def test_it_nests_in_transformations():
    fmt = make_format("int4", 16)
    w = jnp.stack([weight(4), weight(5)])
    loss = lambda w: jnp.square(jaxq.fake_quant(w, fmt, clip_ratio=0.7)).sum()  # noqa: E731
    single = np.stack([jax.grad(loss)(one) for one in w])
    np.testing.assert_allclose(jax.vmap(jax.grad(loss))(w), single, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(w), single, rtol=1e-5)
    _, tangent = jax.jvp(lambda w: jaxq.fake_quant(w, fmt), (w[0],), (w[1],))
    np.testing.assert_array_equal(tangent, w[1])


def test_a_gradient_has_the_type_of_the_weight():
    w = weight(6).astype(jnp.bfloat16)
    got = jax.grad(lambda w: jaxq.fake_quant(w, make_format("int4", 16)).sum())(w)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got, np.float32), 1.0)


def test_training_with_it_beats_rounding_afterwards():
    """Least squares in 3 bits: steps along the straight-through gradient lower the loss of the rounded weight."""
    fmt = make_format("int3", 16)
    x = jax.random.normal(jax.random.key(0), (256, 32)) @ jax.random.normal(jax.random.key(1), (32, 32)) / 6
    w = jax.random.normal(jax.random.key(2), (32, 4))
    scales = fmt.plain_scales(w)
    loss = lambda v: jnp.mean(jnp.square(x @ (jaxq.fake_quant(v, fmt, scales) - w)))  # noqa: E731
    step = jax.jit(lambda v: v - 0.05 * jax.grad(loss)(v))
    v, least = w, float(loss(w))
    start = least
    for _ in range(200):
        v = step(v)
        least = min(least, float(loss(v)))
    assert least < 0.85 * start
