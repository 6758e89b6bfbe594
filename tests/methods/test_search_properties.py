"""What holds for moments and searches, whatever the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxq.formats.integers import IntegerFormat
from jaxq.methods.awq import ScaleChoice, search_clip, search_scales
from jaxq.methods.grids import alpha_grid, ratio_grid
from jaxq.numerics.moments import Moments, accumulate, finish, output_error, zero_sums

TOKENS, C_IN, C_OUT = 16, 20, 3
ALPHAS, RATIOS = np.array(alpha_grid(0.5), np.float32), np.array(ratio_grid(0.5, 0.1), np.float32)
FORMATS = {"int4": IntegerFormat(8), "uint3": IntegerFormat(8, 3, use_zero_point=True)}
EACH_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


@st.composite
def problems(draw) -> tuple[np.ndarray, np.ndarray]:
    """Activations with a common signal, channels of all sizes, some dead; a weight with heavy tails."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(size=(TOKENS, C_IN)) + draw(st.floats(0, 5)) * rng.normal(size=(TOKENS, 1))
    x *= rng.lognormal(sigma=draw(st.floats(0, 3)), size=C_IN) * (rng.uniform(size=C_IN) >= draw(st.floats(0, 0.9)))
    w = rng.standard_t(draw(st.integers(2, 9)), size=(C_IN, C_OUT)) * (rng.uniform(size=C_IN) >= 0.1)[:, None]
    return x.astype(np.float32), w.astype(np.float32)


def moments_of(x: np.ndarray, keep: np.ndarray | None = None) -> Moments:
    kept = np.ones(TOKENS, np.float32) if keep is None else keep
    return finish(accumulate(zero_sums(C_IN), jnp.asarray(x), jnp.asarray(kept)))


def scales(w: np.ndarray, moments: Moments, fmt: IntegerFormat) -> ScaleChoice:
    return search_scales(jnp.asarray(w), moments, jnp.asarray(ALPHAS), fmt)


def clip(w: np.ndarray, h: jax.Array, fmt: IntegerFormat) -> np.ndarray:
    return np.asarray(search_clip(jnp.asarray(w), h, jnp.asarray(RATIOS), fmt))


def column_errors(w: np.ndarray, x: np.ndarray, fmt: IntegerFormat, ratio: np.ndarray) -> np.ndarray:
    d = np.asarray(fmt.round_trip(jnp.asarray(w), jnp.asarray(ratio)), np.float64) - w
    return ((x.astype(np.float64) @ d) ** 2).mean(axis=0)


@given(problem=problems(), order=st.permutations(range(TOKENS)))
def test_moments_do_not_depend_on_the_order_of_tokens(problem, order):
    x, _ = problem
    got, want = moments_of(x[order]), moments_of(x)
    size = np.sqrt(np.diag(np.asarray(want.h, np.float64)))
    assert (abs(np.asarray(got.h) - np.asarray(want.h)) <= 1e-5 * np.outer(size, size)).all()
    np.testing.assert_allclose(np.asarray(got.a), np.asarray(want.a), rtol=1e-5)


@given(problem=problems(), kept=st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS))
def test_tokens_count_once_wherever_they_are(problem, kept):
    """Some in one batch and the rest in another, or all in one."""
    x, _ = problem
    keep = np.array(kept, np.float32)
    sums = accumulate(zero_sums(C_IN), jnp.asarray(x), jnp.asarray(keep))
    got, want = finish(accumulate(sums, jnp.asarray(x), jnp.asarray(1 - keep))), moments_of(x)
    assert int(got.tokens) == TOKENS
    size = np.sqrt(np.diag(np.asarray(want.h, np.float64)))
    assert (abs(np.asarray(got.h) - np.asarray(want.h)) <= 1e-5 * np.outer(size, size)).all()


@given(problem=problems())
def test_output_error_is_that_of_the_outputs(problem):
    """To a part of what it would be if nothing cancelled: a common signal can."""
    x, w = problem
    exact = ((x.astype(np.float64) @ w) ** 2).mean(axis=0)
    bound = ((abs(x.astype(np.float64)) @ abs(w)) ** 2).mean(axis=0)
    got = np.asarray(output_error(jnp.asarray(w), moments_of(x).h))
    assert (abs(got - exact) <= 1e-6 * bound).all()


@given(problem=problems(), power=st.integers(-10, 10))
def test_output_error_is_quadratic(problem, power):
    x, w = problem
    h, c = moments_of(x).h, np.float32(2.0**power)
    once, scaled = (np.asarray(output_error(jnp.asarray(d), h)) for d in (w, w * c))
    np.testing.assert_array_equal(scaled, once * c * c)


@EACH_FORMAT
@given(problem=problems())
def test_a_scale_search_never_loses(fmt, problem):
    x, w = problem
    choice = scales(w, moments_of(x), fmt)
    losses, s = np.asarray(choice.losses), np.asarray(choice.s)
    assert np.isfinite(losses).all()
    assert losses[int(choice.best)] == losses.min()
    assert (s > 0).all()
    assert np.isclose(s.max() * s.min(), 1, rtol=1e-4)


@EACH_FORMAT
@given(problem=problems(), power=st.integers(-8, 8))
def test_the_unit_of_the_output_does_not_matter(fmt, problem, power):
    """All weights times a power of two: the same scales and ratios, every loss times its square."""
    x, w = problem
    moments, c = moments_of(x), np.float32(2.0**power)
    once, scaled = scales(w, moments, fmt), scales(w * c, moments, fmt)
    assert int(once.best) == int(scaled.best)
    np.testing.assert_array_equal(np.asarray(scaled.losses), np.asarray(once.losses) * c * c)
    np.testing.assert_array_equal(clip(w * c, moments.h, fmt), clip(w, moments.h, fmt))


@EACH_FORMAT
@given(problem=problems())
def test_no_column_is_worse_for_clipping(fmt, problem):
    x, w = problem
    chosen = clip(w, moments_of(x).h, fmt)
    before, after = (column_errors(w, x, fmt, ratio) for ratio in (np.ones_like(chosen), chosen))
    slack = 1e-6 * (abs(x.astype(np.float64)) ** 2).mean() * (abs(w) ** 2).sum(axis=0)
    assert (after <= before * (1 + 1e-5) + slack).all()
    assert np.isin(chosen, RATIOS).all()


@EACH_FORMAT
@given(problem=problems(), order=st.permutations(range(C_OUT)))
def test_columns_are_clipped_independently(fmt, problem, order):
    x, w = problem
    h = moments_of(x).h
    np.testing.assert_array_equal(clip(w[:, order], h, fmt), clip(w, h, fmt)[:, order])


@EACH_FORMAT
@given(problem=problems())
def test_vmap_is_a_loop(fmt, problem):
    x, w = problem
    h = moments_of(x).h
    stack = np.stack([w, w[::-1]])
    chosen = jax.vmap(lambda one: search_clip(one, h, jnp.asarray(RATIOS), fmt))(jnp.asarray(stack))
    for got, one in zip(np.asarray(chosen), stack, strict=True):
        np.testing.assert_array_equal(got, clip(one, h, fmt))
