"""jaxq.formats.integers.IntegerFormat: a format and the weights that it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.formats.base import Quantized
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.numerics.integer import quant_tensor

ROWS = 196
FORMATS = [
    pytest.param(IntegerFormat(8), id="int4"),
    pytest.param(IntegerFormat(8, use_zero_point=True), id="uint4"),
    pytest.param(IntegerFormat(-1, 8), id="int8_per_channel"),
    pytest.param(IntegerFormat(8, scale_dtype="float16"), id="int4_float16"),
    pytest.param(IntegerFormat(8, full_range=True), id="int4_full_range"),
    pytest.param(IntegerFormat(8, full_range=True, scale_dtype="float16"), id="int4_full_range_float16"),
    pytest.param(IntegerFormat(8, use_zero_point=True, scale_dtype="bfloat16"), id="uint4_bfloat16"),
    pytest.param(IntegerFormat(8, full_range=True, scale_dtype=FLOAT8), id="int4_full_range_float8"),
    pytest.param(IntegerFormat(8, use_zero_point=True, scale_dtype=FLOAT8), id="uint4_float8"),
]


@pytest.fixture(scope="module")
def w() -> jax.Array:
    return jnp.asarray(np.random.default_rng(4).normal(size=(ROWS, 30)), jnp.float32)


@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_belong_to_the_stored_scales(w, fmt):
    """Scales are rounded to their dtype before weights are rounded to them: with so many weights, some would differ."""
    quantized = fmt.quantize(w)
    assert quantized.s.dtype == jnp.dtype(fmt.scale_dtype)
    rows = [0] * ROWS if fmt.block_size == -1 else [i // 8 for i in range(ROWS)]
    s = np.asarray(quantized.s, np.float32)[rows] * (1 if quantized.s2 is None else np.asarray(quantized.s2))
    zp = 0 if quantized.zp is None else np.asarray(quantized.zp, np.float64)[rows]
    low, high = (0, 15) if fmt.use_zero_point else (-(2**fmt.num_bits) // 2, 2**fmt.num_bits // 2 - 1)
    want = np.clip(np.rint(np.asarray(w) / s) + zp, low, high)
    np.testing.assert_array_equal(np.asarray(quantized.q, np.float64), want)
    back = fmt.dequantize(quantized)
    assert back.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(back), (want - zp) * s.astype(np.float64), rtol=2**-23)
    np.testing.assert_array_equal(np.asarray(fmt.round_trip(w)), np.asarray(back))


def test_full_range_scales_are_for_symmetric_codes_only(w):
    fmt = IntegerFormat(8, use_zero_point=True)
    both = IntegerFormat(8, use_zero_point=True, full_range=True)
    np.testing.assert_array_equal(np.asarray(both.quantize(w).s), np.asarray(fmt.quantize(w).s))
    assert (np.asarray(IntegerFormat(8, full_range=True).quantize(w).s) < 0).any()


@pytest.mark.parametrize("full_range", [False, True])
def test_weights_too_small_for_the_scales_type_are_zero(w, full_range):
    quantized = IntegerFormat(8, full_range=full_range, scale_dtype="float16").quantize(w * 1e-9)
    assert (np.asarray(quantized.s) == 1).all()
    assert not np.asarray(quantized.q).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_any_dtype_are_quantized_in_float32(w, dtype):
    low = w.astype(dtype)
    quantized, want = IntegerFormat(8).quantize(low), IntegerFormat(8).quantize(low.astype(jnp.float32))
    for got, expected in zip(jax.tree.leaves(quantized), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def test_a_clip_ratio_per_block(w):
    ratio = jnp.asarray(np.random.default_rng(5).uniform(0.5, 1, size=(25, 30)), jnp.float32)
    quantized = IntegerFormat(8).quantize(w, ratio)
    q, s, _ = quant_tensor(w, 8, alpha=ratio)
    np.testing.assert_array_equal(np.asarray(quantized.q), np.asarray(q))
    np.testing.assert_array_equal(np.asarray(quantized.s), np.asarray(s))
    assert float(jnp.max(jnp.abs(IntegerFormat(8).round_trip(w, 0.5)))) < 0.6 * float(jnp.max(jnp.abs(w)))


def test_equal_formats_are_one_key():
    assert len({IntegerFormat(32), IntegerFormat(block_size=32, num_bits=4), IntegerFormat(32, 8)}) == 2


@pytest.mark.parametrize(("zero", "leaves"), [(False, 2), (True, 3)], ids=["symmetric", "zero_point"])
def test_quantized_is_a_pytree(w, zero, leaves):
    fmt = IntegerFormat(8, use_zero_point=zero)
    quantized = jax.jit(fmt.quantize)(w)
    assert isinstance(quantized, Quantized)
    assert len(jax.tree.leaves(quantized)) == leaves


@pytest.mark.parametrize(
    ("fmt", "said"),
    [
        pytest.param(IntegerFormat(0), "block_size is 0:", id="block_0"),
        pytest.param(IntegerFormat(num_bits=16), "num_bits is 16:", id="16_bits"),
    ],
)
def test_bad_formats_are_refused(w, fmt, said):
    with pytest.raises(JaxqError, match=said):
        fmt.quantize(w)


@pytest.mark.parametrize("full_range", [False, True])
def test_scales_beyond_float16_are_cut_off_to_its_greatest(full_range):
    """Nothing becomes infinite; weights of a million are cut off to the greatest code of the greatest scale."""
    fmt = IntegerFormat(8, full_range=full_range, scale_dtype="float16")
    back = np.asarray(fmt.round_trip(jnp.full((8, 1), 1e6)))
    assert (back == 65504 * (8 if full_range else 7)).all()
