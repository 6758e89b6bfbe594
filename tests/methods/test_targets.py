"""jaxq.methods.targets against least squares in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.methods.targets import corrected_target
from jaxq.numerics.drift import drift_product

C_IN, C_OUT, TOKENS = 20, 6, 90


def data(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Activations of the quantized and the float model, a weight, and residuals of both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TOKENS, C_IN)) + rng.normal(size=(TOKENS, 1))
    x_float = x + 0.1 * rng.normal(size=x.shape)
    w = rng.normal(size=(C_IN, C_OUT))
    r = rng.normal(size=(TOKENS, C_OUT))
    return x, x_float, w, r, r + 0.1 * rng.normal(size=r.shape)


def products(x, x_float, r, r_float) -> tuple[jax.Array, jax.Array, jax.Array]:
    ones = jnp.ones(TOKENS)
    j = [jnp.asarray(a, jnp.float32) for a in (x, x_float, r, r_float)]
    drift_in = drift_product(j[0], j[1] - j[0], ones) / TOKENS
    drift_out = drift_product(j[0], j[3] - j[2], ones) / TOKENS
    return jnp.asarray(x.T @ x / TOKENS, jnp.float32), drift_in, drift_out


@pytest.mark.parametrize("ridge", [1e-4, 0.05, 3.0])
def test_the_target_solves_the_least_squares_problem(ridge):
    x, x_float, w, r, r_float = data()
    h, drift_in, drift_out = products(x, x_float, r, r_float)
    got = corrected_target(jnp.asarray(w, jnp.float32), h, drift_in, drift_out, ridge)
    # The penalty as more rows of the data.
    penalty = np.sqrt(ridge * np.diagonal(x.T @ x).mean()) * np.eye(C_IN)
    rows = np.concatenate([x_float @ w + r_float - r, penalty @ w])
    want = np.linalg.lstsq(np.concatenate([x, penalty]), rows, rcond=None)[0]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_without_drift_it_is_the_weight():
    x, _, w, _, _ = data()
    h = jnp.asarray(x.T @ x / TOKENS, jnp.float32)
    zeros = jnp.zeros((C_IN, C_IN)), jnp.zeros((C_IN, C_OUT))
    np.testing.assert_array_equal(corrected_target(jnp.asarray(w, jnp.float32), h, *zeros, 0.05), w.astype(np.float32))


def test_a_held_weight_hardly_moves():
    x, x_float, w, r, r_float = data()
    moved = [
        np.linalg.norm(
            np.asarray(corrected_target(jnp.asarray(w, jnp.float32), *products(x, x_float, r, r_float), k)) - w
        )
        for k in (1e-3, 0.1, 10, 1e5)
    ]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-3 * moved[0]


def test_padding_is_left_out():
    x, x_float, *_ = data()
    keep = np.arange(TOKENS) % 3 != 0
    spoilt, other = x.copy(), x_float.copy()
    spoilt[~keep], other[~keep] = np.nan, np.inf
    j, lacking = jnp.asarray(spoilt, jnp.float32), jnp.asarray(other - spoilt, jnp.float32)
    got = drift_product(j, lacking, jnp.asarray(keep, jnp.float32))
    np.testing.assert_allclose(got, x[keep].T @ (x_float - x)[keep], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("h", [np.full((C_IN, C_IN), np.nan), -np.eye(C_IN)], ids=["nan", "negative"])
def test_what_cannot_be_solved_stays(h):
    _, _, w, _, _ = data()
    got = corrected_target(
        jnp.asarray(w, jnp.float32), jnp.asarray(h, jnp.float32), jnp.ones((C_IN, C_IN)), jnp.ones((C_IN, C_OUT)), 0.0
    )
    assert np.isfinite(np.asarray(got)).all()
