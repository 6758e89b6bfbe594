"""jaxq.methods.awq, scales: candidates and losses against float64 numpy on the activations."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.methods.awq import (
    ScaleChoice,
    _Candidates,
    _choose_scale,
    awq_scale,
    sample_columns,
    search_scales,
    weight_magnitude,
)
from jaxq.methods.grids import IDENTITY, alpha_grid
from jaxq.numerics.moments import Moments

C_IN, C_OUT, TOKENS = 40, 6, 50
FORMATS = [
    pytest.param(IntegerFormat(16), id="int4"),
    pytest.param(IntegerFormat(16, use_zero_point=True), id="uint4"),
    pytest.param(IntegerFormat(-1, 3), id="int3_per_channel"),
    pytest.param(IntegerFormat(16, full_range=True, scale_dtype="float16"), id="int4_full_range_float16"),
]
ALPHAS = np.array(alpha_grid(0.25), np.float32)


def data(seed: int = 0, outliers: float = 1.0) -> tuple[np.ndarray, np.ndarray, Moments]:
    """Activations with ``outliers`` times larger channels 3 and 21, a weight, and the moments, made in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TOKENS, C_IN)) * rng.uniform(0.2, 2, size=C_IN)
    x[:, [3, 21]] *= outliers
    w = rng.normal(size=(C_IN, C_OUT)).astype(np.float32)
    h, a = jnp.asarray(x.T @ x / TOKENS, jnp.float32), jnp.asarray(abs(x).mean(axis=0), jnp.float32)
    return x, w, Moments(h, a, jnp.array(TOKENS, jnp.int32))


def reference_magnitude(w: np.ndarray, block_size: int) -> np.ndarray:
    block = len(w) if block_size == -1 else block_size
    total = np.zeros(len(w))
    for column in w.T.astype(np.float64):
        for i in range(0, len(w), block):
            top = abs(column[i : i + block]).max()
            total[i : i + block] += abs(column[i : i + block]) / (top if top > 0 else 1)
    return total / w.shape[1]


def reference_scale(a: np.ndarray, w_mean: np.ndarray, alpha: float) -> np.ndarray:
    """In logarithms, so that nothing overflows."""
    if alpha == IDENTITY:
        return np.ones(len(a))
    with np.errstate(divide="ignore", invalid="ignore"):
        top, bottom = alpha * np.log(a), (1 - alpha) * np.log(w_mean)
        log_s = np.where(alpha == 0, 0, top) - np.where(alpha == 1, 0, bottom)
    log_s = np.clip(np.where(np.isnan(log_s), -np.inf, log_s), np.log(1e-4), np.log(1e4))
    return np.exp(log_s - (log_s.max() + log_s.min()) / 2)


def search(w: np.ndarray, moments: Moments, fmt: WeightFormat, columns: int = 0, batch_size: int = 1) -> ScaleChoice:
    return search_scales(jnp.asarray(w), moments, jnp.asarray(ALPHAS), fmt, columns, batch_size)


@pytest.mark.parametrize(
    ("step", "want"),
    [
        pytest.param(0.1, [-1, *(i / 10 for i in range(11))], id="tenths"),
        pytest.param(0.05, [-1, *(i / 20 for i in range(21))], id="twentieths"),
        pytest.param(0.25, [-1, 0, 0.25, 0.5, 0.75, 1], id="quarters"),
        pytest.param(0.4, [-1, 0, 0.4, 0.8], id="step_that_does_not_end_at_1"),
        pytest.param(1.0, [-1, 0, 1], id="ends"),
    ],
)
def test_alpha_grid(step, want):
    assert alpha_grid(step) == tuple(want)


@pytest.mark.parametrize("step", [0.0, 0.0001, -0.1, 1.5, float("nan"), float("inf")])
def test_bad_alpha_steps_are_refused(step):
    with pytest.raises(JaxqError, match=f"alpha_step is {step}:"):
        alpha_grid(step)


@pytest.mark.parametrize("block_size", [16, 8, -1], ids=["ragged", "exact", "per_channel"])
def test_weight_magnitude(block_size):
    _, w, _ = data()
    w[16:32, 1] = 0
    got = np.asarray(weight_magnitude(jnp.asarray(w), block_size))
    np.testing.assert_allclose(got, reference_magnitude(w, block_size), rtol=1e-6)


@pytest.mark.parametrize("alpha", [*ALPHAS.tolist(), 0.9])
@pytest.mark.parametrize("zeros", [False, True], ids=["positive", "some_zeros"])
def test_awq_scale(alpha, zeros):
    rng = np.random.default_rng(1)
    a, w_mean = rng.lognormal(sigma=3, size=C_IN), rng.uniform(1e-3, 1, size=C_IN)
    if zeros:
        a[:4], w_mean[2:6] = 0, 0
    got = awq_scale(jnp.asarray(a, jnp.float32), jnp.asarray(w_mean, jnp.float32), jnp.float32(alpha))
    np.testing.assert_allclose(np.asarray(got), reference_scale(a, w_mean, alpha), rtol=1e-5)


@pytest.mark.parametrize("fmt", FORMATS)
def test_losses_are_the_errors_of_the_outputs(fmt, round_trip):
    """For every candidate, from the activations themselves; the choice is the least."""
    x, w, moments = data(outliers=20)
    choice = search(w, moments, fmt)
    a, w_mean = abs(x).mean(axis=0), reference_magnitude(w, fmt.block_size)
    losses = []
    for alpha in ALPHAS:
        s = reference_scale(a, w_mean, float(alpha))[:, None]
        losses.append(((x @ (round_trip(w * s, fmt) / s - w)) ** 2).sum() / TOKENS)
    np.testing.assert_allclose(np.asarray(choice.losses), losses, rtol=1e-5)
    assert int(choice.best) == int(np.argmin(losses))
    want = reference_scale(a, w_mean, float(ALPHAS[int(choice.best)]))
    np.testing.assert_allclose(np.asarray(choice.s), want, rtol=1e-5)


@pytest.mark.parametrize("fmt", FORMATS[:2])
def test_the_loss_of_siblings_is_their_sum(fmt, round_trip):
    x, w, moments = data()
    choice = search(w, moments, fmt)
    a, w_mean = abs(x).mean(axis=0), reference_magnitude(w, fmt.block_size)
    for alpha, loss in zip(ALPHAS.tolist(), choice.losses.tolist(), strict=True):
        s = reference_scale(a, w_mean, alpha)[:, None]
        parts = [((x @ (round_trip(half * s, fmt) / s - half)) ** 2).sum() / TOKENS for half in (w[:, :2], w[:, 2:])]
        np.testing.assert_allclose(loss, sum(parts), rtol=1e-5)


@pytest.mark.parametrize(
    ("columns", "want"), [(1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (5, [0, 2, 4, 6, 8]), (9, list(range(9)))]
)
def test_sampled_columns_are_evenly_spaced(columns, want):
    w = np.arange(18, dtype=np.float32).reshape(2, 9)
    np.testing.assert_array_equal(np.asarray(sample_columns(jnp.asarray(w), columns)), w[:, want])


@pytest.mark.parametrize("columns", [C_OUT, C_OUT + 1, 1000])
def test_a_sample_of_more_columns_than_there_are_is_all(columns):
    _, w, moments = data(outliers=20)
    got, want = (search(w, moments, IntegerFormat(16), count) for count in (columns, 0))
    np.testing.assert_array_equal(np.asarray(got.losses), np.asarray(want.losses))


def test_bad_searches_are_refused():
    _, w, moments = data()
    with pytest.raises(JaxqError, match="columns is -1:"):
        search(w, moments, IntegerFormat(16), columns=-1)
    with pytest.raises(JaxqError, match=r"w has shape \[20, 6\] and h \[40, 40\]"):
        search(w[:20], moments, IntegerFormat(16))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "nvfp4", "mxfp4"])
def test_candidates_that_leave_the_range_of_float32_are_not_taken(dtype):
    _, w, moments = data()
    spread = np.geomspace(1e-9, 1e9, C_IN).astype(np.float32)
    wide = Moments(moments.h * np.float32(1e-36), moments.a * spread, moments.tokens)
    choice = search(np.float32(1e36) * w, wide, make_format(dtype))
    losses = np.asarray(choice.losses)
    assert not np.isfinite(losses).all()
    assert np.isfinite(np.asarray(choice.s)).all()
    assert np.isfinite(losses[choice.best]) and losses[choice.best] == np.nanmin(losses)


def test_a_loss_without_a_number_is_not_taken():
    losses = jnp.array([[jnp.nan], [2.0], [1.0], [jnp.nan]])
    choice = _choose_scale(
        losses, jnp.ones(C_IN), jnp.ones(C_IN), _Candidates(jnp.array([-1.0, 0.0, 0.5, 1.0]), (0.0,))
    )
    assert int(choice.best) == 2


def test_a_sample_of_columns(round_trip):
    """The first and the last count in the losses; all count in the scales."""
    x, w, moments = data(outliers=20)
    choice = search(w, moments, IntegerFormat(16), columns=2)
    a, w_mean = abs(x).mean(axis=0), reference_magnitude(w, 16)
    for alpha, loss in zip(ALPHAS.tolist(), choice.losses.tolist(), strict=True):
        s = reference_scale(a, w_mean, alpha)[:, None]
        error = ((x @ (round_trip(w * s, IntegerFormat(16)) / s - w)) ** 2).sum(axis=0) / TOKENS
        np.testing.assert_allclose(loss, error[[0, 5]].sum(), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(choice.s), reference_scale(a, w_mean, float(ALPHAS[choice.best])), rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fmt", FORMATS)
def test_awq_never_loses_to_no_scaling(fmt, seed):
    _, w, moments = data(seed, outliers=0.01 if seed % 2 else 3)
    choice = search(w, moments, fmt)
    assert float(choice.losses[choice.best]) <= float(choice.losses[0])
    if int(choice.best) == 0:
        assert (np.asarray(choice.s) == 1).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fmt", FORMATS)
def test_awq_beats_no_scaling_on_outlier_channels(fmt, seed):
    _, w, moments = data(seed, outliers=50)
    choice = search(w, moments, fmt)
    assert float(choice.losses[choice.best]) < 0.5 * float(choice.losses[0])
    assert float(jnp.min(choice.s[jnp.array([3, 21])])) > float(jnp.median(choice.s))


def test_candidates_in_batches_give_the_same():
    """Six candidates, four at a time."""
    _, w, moments = data(outliers=20)
    one, many = (search(w, moments, IntegerFormat(16), batch_size=size) for size in (1, 4))
    np.testing.assert_allclose(np.asarray(many.losses), np.asarray(one.losses), rtol=1e-6)
    assert int(many.best) == int(one.best)
    np.testing.assert_array_equal(np.asarray(many.s), np.asarray(one.s))


@pytest.mark.parametrize(
    ("a", "w"),
    [
        pytest.param(np.zeros(C_IN), np.ones((C_IN, C_OUT)), id="no_activation"),
        pytest.param(np.ones(C_IN), np.zeros((C_IN, C_OUT)), id="no_weight"),
        pytest.param(np.zeros(C_IN), np.zeros((C_IN, C_OUT)), id="neither"),
        pytest.param(np.ones(C_IN), np.full((C_IN, C_OUT), 0.3), id="constant"),
        pytest.param(np.arange(C_IN) > 4, np.ones((C_IN, C_OUT)) * (np.arange(C_IN) > 8)[:, None], id="dead_channels"),
    ],
)
@pytest.mark.parametrize("fmt", FORMATS[:2])
def test_degenerate_input_gives_numbers(fmt, a, w):
    a = a.astype(np.float32)
    moments = Moments(jnp.asarray(np.outer(a, a)), jnp.asarray(a), jnp.array(1, jnp.int32))
    choice = search(w.astype(np.float32), moments, fmt)
    assert np.isfinite(np.asarray(choice.losses)).all()
    assert np.isfinite(np.asarray(choice.s)).all()


@pytest.mark.parametrize("fmt", FORMATS[:2])
def test_ties_go_to_no_scaling(fmt):
    """Without activations every loss is zero."""
    moments = Moments(jnp.zeros((C_IN, C_IN)), jnp.zeros(C_IN), jnp.array(0, jnp.int32))
    choice = search(data()[1], moments, fmt)
    assert int(choice.best) == 0
    assert (np.asarray(choice.s) == 1).all()
