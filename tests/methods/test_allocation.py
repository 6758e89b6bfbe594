"""jaxq.methods.allocation: against all combinations, and against numpy in float64."""

from itertools import pairwise, product

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxq.methods.allocation import Option, allocate, lower_hull, relative_errors, typical_error

OPTIONS = st.lists(st.builds(Option, st.integers(1, 40), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=5)


def totals(options: list[list[Option]], chosen: tuple[int, ...] | list[int]) -> tuple[int, float]:
    taken = [weight[i] for weight, i in zip(options, chosen, strict=True)]
    return sum(o.nbytes for o in taken), sum(o.loss for o in taken)


@given(OPTIONS)
def test_the_hull_is_below_all_options(options):
    hull = [options[i] for i in lower_hull(options)]
    sizes, losses = [o.nbytes for o in hull], [o.loss for o in hull]
    assert sizes == sorted(set(sizes)) and losses == sorted(losses, reverse=True)
    assert sizes[0] == min(o.nbytes for o in options) and losses[-1] == min(o.loss for o in options)
    for option in options:
        assert np.interp(option.nbytes, sizes, losses) <= option.loss + 1e-9


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(0, 160))
def test_nothing_of_its_size_loses_less(options, budget):
    """With the bytes that it takes, and within the budget but for where not even the smallest fit."""
    chosen = allocate(options, budget)
    size, loss = totals(options, chosen)
    smallest = sum(min(o.nbytes for o in weight) for weight in options)
    assert size <= max(budget, smallest)
    allocations = [totals(options, c) for c in product(*(range(len(weight)) for weight in options))]
    best = min(total for nbytes, total in allocations if nbytes <= max(budget, smallest))
    steps = [options_step(weight) for weight in options]
    assert loss <= best + max(steps) + 1e-9  # one step along a hull may not fit
    if budget >= sum(max(o.nbytes for o in weight) for weight in options):
        assert loss == pytest.approx(sum(min(o.loss for o in weight) for weight in options))


def options_step(options: list[Option]) -> float:
    losses = [options[i].loss for i in lower_hull(options)]
    return max((a - b for a, b in pairwise(losses)), default=0.0)


def test_the_greatest_fall_for_each_byte_comes_first():
    steep, flat = [Option(4, 1.0), Option(8, 0.1)], [Option(40, 2.0), Option(80, 0.1)]
    assert allocate([flat, steep], 48) == [0, 1]
    assert allocate([steep, flat, flat], 132) == [1, 1, 0]  # what does not fit any more is passed over
    assert allocate([flat, steep], 88) == [1, 1]


def test_relative_errors_are_those_of_the_outputs():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(30, 6)) * rng.uniform(0.1, 3, 6), rng.normal(size=(6, 4))
    d = 0.1 * rng.normal(size=(6, 4))
    w[:, 3] = 0
    arrays = jnp.asarray(d, jnp.float32), jnp.asarray(w, jnp.float32)
    errors = np.asarray(relative_errors(*arrays, jnp.asarray(x.T @ x / 30, jnp.float32)))
    want = np.square(x @ d).sum(axis=0)[:3] / np.square(x @ w).sum(axis=0)[:3]
    np.testing.assert_allclose(errors[:3], want, rtol=1e-5)
    assert np.isnan(errors[3])
    alone = np.asarray(relative_errors(*arrays, None))
    np.testing.assert_allclose(alone[:3], np.square(d).sum(axis=0)[:3] / np.square(w).sum(axis=0)[:3], rtol=1e-5)


def test_a_typical_error_is_a_geometric_mean():
    assert typical_error([1e-4, 1e-2, float("nan")]) == pytest.approx(1e-3)
    assert typical_error([0.0, float("nan")]) == 0.0
    assert typical_error([float("nan")]) == 0.0
    assert typical_error([-1e-12, 1e-3]) > 0  # rounding of float32
    assert typical_error([-1e-12]) == 0.0


def test_columns_without_an_error_make_a_format_better():
    """Nearly all columns exact, as in a model that was dequantized from this very format."""
    nearly_exact, even = [0.0] * 95 + [0.01], [0.002] * 96
    assert 0 < typical_error(nearly_exact) < 0.01 * typical_error(even)
    assert typical_error([0.0, 0.01, 0.01]) < 0.01
