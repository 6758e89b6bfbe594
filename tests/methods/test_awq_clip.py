"""jaxq.methods.awq, clip ratios: each block's choice against float64 numpy on the activations."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.methods.awq import search_clip
from jaxq.methods.grids import ratio_grid
from jaxq.numerics.moments import diagonal_blocks

C_IN, C_OUT, TOKENS, BLOCK = 40, 6, 60, 16
RATIOS = np.array(ratio_grid(0.5, 0.05), np.float32)
FORMATS = [
    pytest.param(IntegerFormat(BLOCK), id="int4"),
    pytest.param(IntegerFormat(BLOCK, 3, use_zero_point=True), id="uint3"),
    pytest.param(IntegerFormat(BLOCK, full_range=True, scale_dtype="float16"), id="int4_full_range_float16"),
    pytest.param(IntegerFormat(-1), id="int4_per_channel"),
]


def weight(seed: int) -> np.ndarray:
    """Heavy tails, so that clipping pays."""
    return np.random.default_rng(seed).standard_t(3, size=(C_IN, C_OUT)).astype(np.float32)


def activation_values(seed: int, common: float) -> np.ndarray:
    """Channels that share ``common`` times one signal: the more, the less blocks are independent."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(TOKENS, C_IN)) + common * rng.normal(size=(TOKENS, 1))


def independent_blocks(x: np.ndarray, block: int) -> np.ndarray:
    """The same tokens, each seen by one block of channels only."""
    parts = []
    for start in range(0, C_IN, block):
        masked = np.zeros_like(x)
        masked[:, start : start + block] = x[:, start : start + block]
        parts.append(masked)
    return np.concatenate(parts)


def second_moment(x: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(x.T @ x / len(x), jnp.float32)


def block_errors(x: np.ndarray, w: np.ndarray, fmt: IntegerFormat, round_trip) -> np.ndarray:
    """[candidates, n_blocks, c_out]: mean square over tokens of what one block adds to the output."""
    block = C_IN if fmt.block_size == -1 else fmt.block_size
    errors = []
    for ratio in RATIOS.astype(np.float64):
        d = round_trip(w, fmt, ratio) - w
        rows = [slice(i, i + block) for i in range(0, C_IN, block)]
        errors.append([((x[:, r] @ d[r]) ** 2).mean(axis=0) for r in rows])
    return np.array(errors)


def clip(x: np.ndarray, w: np.ndarray, fmt: IntegerFormat) -> np.ndarray:
    return np.asarray(search_clip(jnp.asarray(w), second_moment(x), jnp.asarray(RATIOS), fmt))


@pytest.mark.parametrize(
    ("min_ratio", "step", "want"),
    [
        pytest.param(0.5, 0.05, [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5], id="default"),
        pytest.param(0.55, 0.05, [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55], id="decimal_that_rounds"),
        pytest.param(0.9, 0.1, [1, 0.9], id="one_step"),
        pytest.param(0.5, 0.3, [1, 0.7], id="least_off_the_grid"),
        pytest.param(1.0, 0.05, [1], id="no_clipping"),
    ],
)
def test_ratio_grid(min_ratio, step, want):
    assert ratio_grid(min_ratio, step) == tuple(want)


@pytest.mark.parametrize(
    ("min_ratio", "step", "said"),
    [
        pytest.param(0.0, 0.05, "min_clip_ratio is 0.0:", id="least_0"),
        pytest.param(-0.5, 0.05, "min_clip_ratio is -0.5:", id="least_negative"),
        pytest.param(1.01, 0.05, "min_clip_ratio is 1.01:", id="least_above_1"),
        pytest.param(float("nan"), 0.05, "min_clip_ratio is nan:", id="least_nan"),
        pytest.param(0.5, 0.0, "clip_step is 0.0:", id="step_0"),
        pytest.param(0.5, -0.1, "clip_step is -0.1:", id="step_negative"),
        pytest.param(0.5, 0.0001, "clip_step is 0.0001:", id="step_too_small"),
        pytest.param(0.5, 2.0, "clip_step is 2.0:", id="step_above_1"),
    ],
)
def test_bad_ratio_grids_are_refused(min_ratio, step, said):
    with pytest.raises(JaxqError, match=said):
        ratio_grid(min_ratio, step)


@pytest.mark.parametrize("block_size", [16, 8, 64, -1], ids=["ragged", "exact", "longer", "per_channel"])
def test_diagonal_blocks(block_size):
    h = np.random.default_rng(0).normal(size=(C_IN, C_IN)).astype(np.float32)
    block = C_IN if block_size == -1 else min(block_size, C_IN)
    got = np.asarray(diagonal_blocks(jnp.asarray(h), block_size))
    assert got.shape == (-(-C_IN // block), block, block)
    for i, h_block in enumerate(got):
        want = h[i * block : (i + 1) * block, i * block : (i + 1) * block]
        np.testing.assert_array_equal(h_block[: len(want), : len(want)], want)
        assert not h_block[len(want) :].any()
        assert not h_block[:, len(want) :].any()


@pytest.mark.parametrize("fmt", FORMATS)
def test_each_block_takes_the_ratio_of_least_error(fmt, round_trip):
    """Where blocks are independent there is nothing to guard, and the search is exact."""
    w = weight(0)
    x = independent_blocks(activation_values(1, common=0.5), C_IN if fmt.block_size == -1 else BLOCK)
    chosen = clip(x, w, fmt)
    errors = block_errors(x, w, fmt, round_trip)
    np.testing.assert_array_equal(chosen, RATIOS[errors.argmin(axis=0)])
    assert len(np.unique(chosen)) > 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fmt", FORMATS[:2])
def test_columns_that_would_lose_stay_unclipped(fmt, seed, round_trip):
    """Where blocks share a signal, the best of each block can add up to worse than no clipping."""
    w, x = weight(seed), activation_values(seed + 10, common=3)
    errors = block_errors(x, w, fmt, round_trip)
    best = RATIOS[errors.argmin(axis=0)]

    def total(ratio: np.ndarray | float) -> np.ndarray:
        return ((x @ (round_trip(w, fmt, ratio) - w)) ** 2).mean(axis=0)

    lose = total(best.astype(np.float64)) >= total(1.0)
    want = np.where(lose, np.float32(1), best)
    chosen = clip(x, w, fmt)
    np.testing.assert_array_equal(chosen, want)
    assert (total(chosen.astype(np.float64)) <= total(1.0)).all()


def test_the_guard_is_put_to_the_test(round_trip):
    """Among the columns of the test above are some of either kind."""
    fmt, kinds = IntegerFormat(BLOCK), set()
    for seed in range(4):
        w, x = weight(seed), activation_values(seed + 10, common=3)
        best = RATIOS[block_errors(x, w, fmt, round_trip).argmin(axis=0)].astype(np.float64)
        totals = [((x @ (round_trip(w, fmt, ratio) - w)) ** 2).mean(axis=0) for ratio in (best, 1.0)]
        kinds |= set((totals[0] < totals[1]).tolist())
    assert kinds == {False, True}


@pytest.mark.parametrize("fmt", FORMATS[:2])
def test_a_block_of_zeros_stays_unclipped_beside_clipped_ones(fmt):
    w = weight(0)
    w[BLOCK : 2 * BLOCK] = 0
    chosen = clip(independent_blocks(activation_values(1, common=0.5), BLOCK), w, fmt)
    assert (chosen[1] == 1).all()
    assert (chosen[[0, 2]] < 1).any(axis=0).any()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    ("w", "h"),
    [
        pytest.param(jnp.zeros((C_IN, C_OUT)), jnp.eye(C_IN), id="no_weight"),
        pytest.param(jnp.ones((C_IN, C_OUT)), jnp.zeros((C_IN, C_IN)), id="no_activation"),
    ],
)
def test_ties_go_to_no_clipping(fmt, w, h):
    assert (np.asarray(search_clip(w, h, jnp.asarray(RATIOS), fmt)) == 1).all()
