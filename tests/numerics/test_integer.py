"""jaxq.numerics.integer against float64 numpy: scales, codes and what they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.numerics.integer import code_range, dq_tensor, find_full_range_scales, find_scales, quant_tensor, rtn

EPS = 2.0**-23
LAYOUTS = {
    "ragged": ((20, 3), 8, 0),
    "per_channel": ((20, 3), -1, 0),
    "long_block": ((20, 3), 32, 0),
    "axis_1": ((3, 20), 8, 1),
    "three_axes": ((2, 20, 3), 8, -2),
}
CASES = [
    *(pytest.param(layout, 4, zero, id=f"{name}-zp={zero}") for name, layout in LAYOUTS.items() for zero in (0, 1)),
    *(
        pytest.param(LAYOUTS["ragged"], b, zero, id=f"bits={b}-zp={zero}")
        for b in (2, 3, 5, 6, 7, 8)
        for zero in (0, 1)
    ),
]


def weight(shape: tuple[int, ...], dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)


def groups(w: np.ndarray, block_size: int, axis: int) -> list[np.ndarray]:
    """The blocks of ``w``, each with the axis in front, in float64."""
    rows = np.moveaxis(np.asarray(w, np.float64), axis, 0)
    block = len(rows) if block_size == -1 else block_size
    return [rows[i : i + block] for i in range(0, len(rows), block)]


def spread(s: np.ndarray, w: np.ndarray, block_size: int, axis: int) -> np.ndarray:
    """One value a block -> one a weight."""
    block = w.shape[axis] if block_size == -1 else block_size
    return np.take(np.asarray(s), [i // block for i in range(w.shape[axis])], axis=axis)


def reference_scales(w: np.ndarray, block_size: int, axis: int, bits: int, zero: bool) -> np.ndarray:
    levels = 2.0**bits - 1 if zero else 2.0 ** (bits - 1) - 1
    scales = []
    for block in groups(w, block_size, axis):
        with_zero = np.concatenate([block, 0 * block[:1]])
        scales.append(np.ptp(with_zero, axis=0) / levels if zero else abs(block).max(axis=0) / levels)
    return np.moveaxis(np.stack(scales), 0, axis)


def reference_codes(w: np.ndarray, s: np.ndarray, zp: np.ndarray | None, bits: int) -> np.ndarray:
    """Scales and zero points one a weight; numpy's own float32 division, so ties fall as in IEEE arithmetic."""
    quotient = np.asarray(w, np.float32) / np.asarray(s, np.float32)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if zp is None else (0, 2**bits - 1)
    return np.clip(np.rint(quotient.astype(np.float64)) + (0 if zp is None else zp), low, high)


@pytest.mark.parametrize(("layout", "bits", "zero"), CASES)
def test_scales_codes_and_weights(layout, bits, zero):
    (shape, block_size, axis), zero = layout, bool(zero)
    w = weight(shape)
    s, zp = find_scales(w, block_size, axis, use_zero_point=zero, num_bits=bits)
    want = reference_scales(np.asarray(w), block_size, axis, bits, zero)
    if zero:
        assert zp is not None and zp.dtype == jnp.uint8
        np.testing.assert_allclose(np.asarray(s), want, rtol=2 * EPS)
        lowest = np.stack([np.minimum(g.min(axis=0), 0) for g in groups(np.asarray(w), block_size, axis)])
        want_zp = np.rint(-np.moveaxis(lowest, 0, axis) / np.asarray(s, np.float64))
        np.testing.assert_array_equal(np.asarray(zp), want_zp)
    else:
        assert zp is None
        np.testing.assert_array_equal(np.asarray(s), want.astype(np.float32))

    every_s = spread(np.asarray(s), np.asarray(w), block_size, axis)
    every_zp = None if zp is None else spread(np.asarray(zp, np.float64), np.asarray(w), block_size, axis)
    q = rtn(w, s, block_size, axis, zp, bits)
    assert q.dtype == (jnp.uint8 if zero else jnp.int8)
    np.testing.assert_array_equal(np.asarray(q), reference_codes(np.asarray(w), every_s, every_zp, bits))

    dq = np.asarray(dq_tensor(q, s, block_size, axis, zp))
    exact = (np.asarray(q, np.float64) - (0 if every_zp is None else every_zp)) * every_s.astype(np.float64)
    np.testing.assert_array_equal(dq, exact.astype(np.float32))
    assert (abs(dq - np.asarray(w)) <= every_s * (0.5 + 2.0**bits * EPS)).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_full_range_scales(layout):
    """The weight of greatest magnitude gets the least code, by a negative scale if it is positive."""
    shape, block_size, axis = layout
    w = weight(shape)
    s = find_full_range_scales(w, block_size, axis, 0.75, num_bits=3)
    greatest = [
        np.take_along_axis(g, abs(g).argmax(axis=0)[None], axis=0)[0] for g in groups(np.asarray(w), block_size, axis)
    ]
    np.testing.assert_allclose(np.asarray(s), np.moveaxis(np.stack(greatest), 0, axis) * 0.75 / -4, rtol=EPS)


def test_a_range_beyond_float32():
    w = jnp.array([3e38, -2.9e38, 1e37, 0.0])[:, None]
    q, s, zp = quant_tensor(w, 4, use_zero_point=True)
    error = np.asarray(dq_tensor(q, s, 4, zp=zp), np.float64) - np.asarray(w, np.float64)
    assert (abs(error) <= np.asarray(s, np.float64) * 0.5001).all()


def test_full_range_scales_of_special_blocks():
    w = jnp.array([[0.0, 2.0, -2.0, 1.0], [0.0, -2.0, 1.0, 0.5]])
    s = find_full_range_scales(w, 2)
    assert s.tolist() == [[1.0, -0.25, 0.25, -0.125]]
    assert rtn(w, s, 2).tolist() == [[0, -8, -8, -8], [0, 7, 4, -4]]


@pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero_point"])
def test_quant_tensor_is_find_scales_then_rtn(zero):
    w = weight((20, 3))
    q, s, zp = quant_tensor(w, 8, 0, 0.8, zero, 3)
    want_s, want_zp = find_scales(w, 8, 0, 0.8, zero, 3)
    np.testing.assert_array_equal(np.asarray(s), np.asarray(want_s))
    np.testing.assert_array_equal(np.asarray(q), np.asarray(rtn(w, want_s, 8, 0, want_zp, 3)))
    assert (zp is None) == (not zero)
    if zp is not None and want_zp is not None:
        np.testing.assert_array_equal(np.asarray(zp), np.asarray(want_zp))


@pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero_point"])
@pytest.mark.parametrize("shape", [(), (3, 3), (1, 3)], ids=["number", "per_block", "per_column"])
def test_alpha_shrinks_the_range(shape, zero):
    w = weight((20, 3))
    alpha = np.random.default_rng(2).uniform(0.5, 1, size=shape).astype(np.float32)
    s, _ = find_scales(w, 8, 0, jnp.asarray(alpha) if shape else float(alpha), zero)
    want = reference_scales(np.asarray(w), 8, 0, 4, zero) * np.asarray(alpha, np.float64)
    np.testing.assert_allclose(np.asarray(s), want, rtol=4 * EPS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero_point"])
def test_half_precision(dtype, zero):
    """Scales and weights in the weight's dtype, one rounding from the exact ones; codes by float32 division."""
    w = weight((20, 3), dtype)
    q, s, zp = quant_tensor(w, 8, use_zero_point=zero)
    dq = dq_tensor(q, s, 8, zp=zp)
    assert s.dtype == dq.dtype == jnp.dtype(dtype)
    want = reference_scales(np.asarray(w, np.float64), 8, 0, 4, zero)
    np.testing.assert_allclose(np.asarray(s, np.float64), want, rtol=0.51 * float(jnp.finfo(dtype).eps))
    every_s = spread(np.asarray(s, np.float64), np.asarray(w), 8, 0)
    every_zp = None if zp is None else spread(np.asarray(zp, np.float64), np.asarray(w), 8, 0)
    codes = np.asarray(q, np.float64)
    np.testing.assert_array_equal(codes, reference_codes(np.asarray(w, np.float32), every_s, every_zp, 4))
    exact = (codes - (0 if every_zp is None else every_zp)) * every_s
    np.testing.assert_array_equal(np.asarray(dq), exact.astype(dq.dtype))


def near_ties(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights whose quotients by their scales are within a rounding or two of ``k + 1/2``."""
    rng = np.random.default_rng(3)
    s = rng.uniform(0.01, 1, size=(rows // 16, columns)).astype(np.float32)
    ties = (rng.integers(-8, 8, size=(rows, columns)) + 0.5) * np.repeat(s, 16, axis=0)
    return (ties * (1 + rng.integers(-1, 2, size=ties.shape) * EPS)).astype(np.float32), s


def stack_of_rtn(w: jax.Array, s: jax.Array) -> jax.Array:
    return jnp.stack([rtn(one, scale, 16) for one, scale in zip(w, s, strict=True)])


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(stack_of_rtn, id="plain"),
        pytest.param(jax.jit(stack_of_rtn), id="inside_jit"),
        pytest.param(jax.vmap(lambda w, s: rtn(w, s, 16)), id="vmap"),
        pytest.param(lambda w, s: jax.lax.map(lambda pair: rtn(pair[0], pair[1], 16), (w, s)), id="lax_map"),
        pytest.param(
            lambda w, s: jax.lax.map(lambda pair: rtn(pair[0], pair[1], 16), (w, s), batch_size=2), id="lax_map_batches"
        ),
    ],
)
def test_division_is_ieee_division_next_to_ties(function):
    w, s = near_ties(4 * 64, 48)
    w, s = w.reshape(4, 64, 48), s.reshape(4, 4, 48)
    want = reference_codes(w, np.repeat(s, 16, axis=1), None, 4)
    np.testing.assert_array_equal(np.asarray(function(jnp.asarray(w), jnp.asarray(s))), want)


def test_ties_go_to_even_and_codes_are_cut_off():
    w = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 7.5, 100, -8.5, -100])[:, None]
    assert rtn(w, jnp.ones((1, 1)), -1)[:, 0].tolist() == [0, 2, 2, 0, -2, -2, 7, 7, -8, -8]
    unsigned = rtn(w, jnp.ones((1, 1)), -1, zp=jnp.full((1, 1), 3, jnp.uint8))
    assert unsigned[:, 0].tolist() == [3, 5, 5, 3, 1, 1, 11, 15, 0, 0]


@pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero_point"])
@pytest.mark.parametrize("size", [5e-6, 1e-20, 1e-30, 1e20])
def test_weights_of_any_size_keep_their_resolution(size, zero):
    w = weight((20, 3))
    s, q = quant_tensor(w, 8, use_zero_point=zero)[1::-1]
    small_q, small_s, _ = quant_tensor(w * size, 8, use_zero_point=zero)
    np.testing.assert_allclose(np.asarray(small_s), np.asarray(s, np.float64) * size, rtol=4 * EPS)
    np.testing.assert_array_equal(np.asarray(small_q), np.asarray(q))


@pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero_point"])
def test_a_block_of_zeros_has_scale_one(zero):
    w = weight((20, 3)).at[8:16].set(0).at[16:, 1].set(0)
    q, s, zp = quant_tensor(w, 8, use_zero_point=zero)
    blank = np.array([[False] * 3, [True] * 3, [False, True, False]])
    assert (np.asarray(s) == 1).tolist() == blank.tolist()
    assert zp is None or (np.asarray(zp)[blank] == 0).all()
    assert (np.asarray(dq_tensor(q, s, 8, zp=zp))[np.asarray(w) == 0] == 0).all()


@pytest.mark.parametrize(("sign", "zp", "codes"), [(1, 0, {14, 15}), (-1, 15, {0, 1})], ids=["positive", "negative"])
def test_a_block_of_one_sign_has_its_zero_point_at_the_end(sign, zp, codes):
    w = sign * jnp.linspace(1.0, 1.1, 48).reshape(16, 3)
    q, s, zeros = quant_tensor(w, 8, use_zero_point=True)
    assert zeros is not None and set(zeros.ravel().tolist()) == {zp}
    assert set(q.ravel().tolist()) == codes
    assert float(jnp.max(jnp.abs(dq_tensor(q, s, 8, zp=zeros) - w))) <= float(jnp.max(s)) / 2 + 1e-6


@pytest.mark.parametrize(
    ("bits", "signed", "unsigned"),
    [pytest.param(b, (-(2**b) // 2, 2**b // 2 - 1), (0, 2**b - 1), id=f"{b}") for b in range(2, 9)],
)
def test_code_range(bits, signed, unsigned):
    assert (code_range(bits, unsigned=False), code_range(bits, unsigned=True)) == (signed, unsigned)


W, S = jnp.ones((20, 3)), jnp.ones((3, 3))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param(lambda: find_scales(W, 8, num_bits=1), "num_bits is 1:", id="find_scales-1_bit"),
        pytest.param(lambda: find_scales(W, 8, num_bits=9), "num_bits is 9:", id="find_scales-9_bits"),
        pytest.param(lambda: find_scales(W, 0), "block_size is 0:", id="find_scales-block_0"),
        pytest.param(lambda: find_scales(W, -2), "block_size is -2:", id="find_scales-block_-2"),
        pytest.param(lambda: find_scales(W, 8, 2), "quantize_axis is 2:", id="find_scales-axis"),
        pytest.param(lambda: find_full_range_scales(W, 8, num_bits=1), "num_bits is 1:", id="full_range-1_bit"),
        pytest.param(lambda: find_full_range_scales(W, 0), "block_size is 0:", id="full_range-block_0"),
        pytest.param(lambda: find_full_range_scales(W, 8, 2), "quantize_axis is 2:", id="full_range-axis"),
        pytest.param(lambda: quant_tensor(W, 8, num_bits=1), "num_bits is 1:", id="quant_tensor-1_bit"),
        pytest.param(lambda: quant_tensor(W, 0), "block_size is 0:", id="quant_tensor-block_0"),
        pytest.param(lambda: quant_tensor(W, 8, -3), "quantize_axis is -3:", id="quant_tensor-axis"),
        pytest.param(lambda: rtn(W, S, 8, num_bits=9), "num_bits is 9:", id="rtn-9_bits"),
        pytest.param(lambda: rtn(W, S, -2), "block_size is -2:", id="rtn-block_-2"),
        pytest.param(lambda: rtn(W, S, 8, 3), "quantize_axis is 3:", id="rtn-axis"),
        pytest.param(lambda: rtn(W, S[:2], 8), r"\[2, 3\].*\[20, 3\].*\[3, 3\]", id="rtn-scale_rows"),
        pytest.param(lambda: rtn(W, S[:, :1], 8), r"\[3, 1\].*\[20, 3\].*\[3, 3\]", id="rtn-scale_columns"),
        pytest.param(lambda: rtn(W, S, 8, 1), r"\[3, 3\].*\[20, 3\].*axis 1.*\[20, 1\]", id="rtn-scales_of_axis_0"),
        pytest.param(lambda: dq_tensor(W, S[0], 8), r"\[3\].*\[20, 3\].*\[3, 3\]", id="dq_tensor-scale_rank"),
        pytest.param(lambda: dq_tensor(W, S, -1), r"\[3, 3\].*blocks of -1.*\[1, 3\]", id="dq_tensor-per_channel"),
        pytest.param(lambda: dq_tensor(W, S, 0), "block_size is 0:", id="dq_tensor-block_0"),
        pytest.param(lambda: dq_tensor(W, S, 8, -3), "quantize_axis is -3:", id="dq_tensor-axis"),
    ],
)
def test_bad_arguments_are_named(call, said):
    with pytest.raises(JaxqError, match=said):
        call()
