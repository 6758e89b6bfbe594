"""What holds for every weight that is rounded to integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxq.numerics.integer import dq_tensor, find_full_range_scales, quant_tensor, rtn

ROWS, COLUMNS, BLOCK, BLOCKS = 24, 3, 8, 3
EPS = 2.0**-23
SIZES = st.floats(2.0**-60, 2.0**60, width=32)
ELEMENTS = st.one_of(st.just(0.0), SIZES, SIZES.map(lambda v: -v), st.floats(-1, 1, width=32, allow_subnormal=False))
ELEMENTS = ELEMENTS.filter(lambda v: v == 0 or abs(v) >= 2.0**-60)
WEIGHTS = hnp.arrays(np.float32, (ROWS, COLUMNS), elements=ELEMENTS)
EITHER = pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero_point"])


def quantize(w: np.ndarray, zero: bool, bits: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    q, s, zp = quant_tensor(jnp.asarray(w), BLOCK, use_zero_point=zero, num_bits=bits)
    return np.asarray(q), np.asarray(s), None if zp is None else np.asarray(zp)


def restore(q: np.ndarray, s: np.ndarray, zp: np.ndarray | None) -> np.ndarray:
    zero_points = None if zp is None else jnp.asarray(zp)
    return np.asarray(dq_tensor(jnp.asarray(q), jnp.asarray(s), BLOCK, zp=zero_points), np.float64)


def assert_equal(got: tuple, want: tuple) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@EITHER
@pytest.mark.parametrize("bits", [3, 8])
@given(w=WEIGHTS)
def test_no_weight_moves_more_than_half_a_step(bits, zero, w):
    q, s, zp = quantize(w, zero, bits)
    step = np.repeat(s.astype(np.float64), BLOCK, axis=0)
    assert (s > 0).all()
    assert (abs(restore(q, s, zp) - w) <= step * (0.5 + 2**bits * EPS)).all()


@EITHER
@given(w=WEIGHTS)
def test_no_other_code_is_nearer(zero, w):
    q, s, zp = quantize(w, zero)
    step = np.repeat(s.astype(np.float64), BLOCK, axis=0)
    offset = 0 if zp is None else np.repeat(zp.astype(np.float64), BLOCK, axis=0)
    codes = np.arange(16) if zero else np.arange(-8, 8)
    nearest = abs((codes[:, None, None] - offset) * step - w).min(axis=0)
    assert (abs((q - offset) * step - w) <= nearest + 16 * EPS * step).all()


@EITHER
@given(w=WEIGHTS, other=WEIGHTS, block=st.integers(0, BLOCKS - 1))
def test_blocks_are_independent(zero, w, other, block):
    changed = w.copy()
    rows = slice(block * BLOCK, (block + 1) * BLOCK)
    changed[rows] = other[rows]
    kept = np.arange(BLOCKS) != block
    for got, want in zip(quantize(changed, zero), quantize(w, zero), strict=True):
        if want is not None and got is not None:
            of_kept = np.repeat(kept, BLOCK) if len(want) == ROWS else kept
            np.testing.assert_array_equal(got[of_kept], want[of_kept])


@EITHER
@given(w=WEIGHTS, order=st.permutations(range(COLUMNS)))
def test_columns_are_independent(zero, w, order):
    want = tuple(None if part is None else part[:, order] for part in quantize(w, zero))
    assert_equal(quantize(w[:, order], zero), want)


@EITHER
@given(w=WEIGHTS, powers=st.lists(st.integers(-30, 30), min_size=COLUMNS, max_size=COLUMNS))
def test_scaling_a_column_scales_its_scales_only(zero, w, powers):
    c = np.ldexp(np.float32(1), np.array(powers, np.int32))
    q, s, zp = quantize(w, zero)
    scaled = quantize(w * c, zero)
    blank = (w.reshape(BLOCKS, BLOCK, COLUMNS) == 0).all(axis=1)
    assert_equal(scaled, (q, np.where(blank, 1, s * c), zp))


@given(w=WEIGHTS)
def test_the_opposite_weight_has_opposite_codes(w):
    q, s, _ = quantize(w, zero=False)
    assert_equal(quantize(-w, zero=False), (-q, s, None))
    assert q.min() >= -7


@given(w=WEIGHTS)
def test_rounding_again_changes_no_code(w):
    q, s, _ = quantize(w, zero=False)
    again, again_s, _ = quantize(restore(q, s, None).astype(np.float32), zero=False)
    np.testing.assert_array_equal(again, q)
    np.testing.assert_allclose(again_s, s, rtol=2 * EPS)


@pytest.mark.parametrize("bits", [2, 7])
@given(w=WEIGHTS)
def test_one_bit_more_halves_the_bound(bits, w):
    """Not every error: a weight that is a multiple of the coarse scale can lose a little."""
    _, coarse, _ = quantize(w, False, bits)
    q, s, _ = quantize(w, False, bits + 1)
    error = abs(restore(q, s, None) - w).reshape(BLOCKS, BLOCK, COLUMNS).max(axis=1)
    assert (error <= coarse.astype(np.float64) * (0.25 + 2**bits * EPS)).all()


@EITHER
@given(w=WEIGHTS, alpha=st.floats(0.125, 1, width=32))
def test_a_clipped_range_is_kept_to(zero, w, alpha):
    """Weights inside move by half a step at most, the others to the end of the range, give or take that."""
    q, s, zp = quant_tensor(jnp.asarray(w), BLOCK, 0, alpha, zero)
    dq = np.asarray(dq_tensor(q, s, BLOCK, zp=zp), np.float64)
    blocks = w.astype(np.float64).reshape(BLOCKS, BLOCK, COLUMNS)
    top = np.repeat(abs(blocks).max(axis=1), BLOCK, axis=0) * alpha
    low, high = (-top, top)
    if zero:
        low = np.repeat(np.minimum(blocks.min(axis=1), 0), BLOCK, axis=0) * alpha
        high = np.repeat(np.maximum(blocks.max(axis=1), 0), BLOCK, axis=0) * alpha
    step = np.repeat(np.asarray(s, np.float64), BLOCK, axis=0)
    inside = (low <= w) & (w <= high)
    half = step * (0.5 + 64 * EPS)
    assert (abs(dq - w) <= half)[inside].all()
    ends = np.where(w < low, low, high)
    assert (abs(dq - ends) <= step * (1 + 64 * EPS))[~inside].all()


@given(w=WEIGHTS)
def test_the_full_range_ends_at_the_greatest_weight(w):
    """It comes back exactly; others move by half a step at most, or by one at the cut-off end."""
    s = find_full_range_scales(jnp.asarray(w), BLOCK)
    dq = np.asarray(dq_tensor(rtn(jnp.asarray(w), s, BLOCK), s, BLOCK), np.float64)
    step = np.repeat(np.asarray(s, np.float64), BLOCK, axis=0)
    greatest = abs(w) == np.repeat(abs(w).reshape(BLOCKS, BLOCK, COLUMNS).max(axis=1), BLOCK, axis=0)
    end = greatest & ((w < 0) == (step > 0))
    np.testing.assert_array_equal(dq[end], w[end])
    assert (abs(dq - w) <= abs(step) * (np.where(w / step > 7, 1, 0.5) + 64 * EPS)).all()


@EITHER
@given(stack=hnp.arrays(np.float32, (2, ROWS, COLUMNS), elements=ELEMENTS))
def test_vmap_is_a_loop(zero, stack):
    q, s, zp = jax.vmap(lambda w: quant_tensor(w, BLOCK, use_zero_point=zero))(jnp.asarray(stack))
    for i, w in enumerate(stack):
        assert_equal((q[i], s[i], None if zp is None else zp[i]), quantize(w, zero))
