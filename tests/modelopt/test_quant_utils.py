"""jaxq.quant_utils against numpy: kinds of arrays, flat alphas, NVFP4, MX exponents, packing, bits by name."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxq import quant_utils
from jaxq.errors import JaxqError
from jaxq.numerics import integer
from jaxq.numerics.float4 import decode_e2m1, encode_e2m1, round_e4m3
from jaxq.numerics.packing import unpack_int4


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def magnitudes(w: np.ndarray, axis: int, block_size: int) -> np.ndarray:
    """Greatest magnitude of each block, the last one ragged; ``n_blocks`` in place of the axis."""
    rows = np.moveaxis(np.abs(w), axis, 0)
    blocks = [rows[i : i + block_size].max(axis=0) for i in range(0, len(rows), block_size)]
    return np.moveaxis(np.stack(blocks), 0, axis)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("use_zero_point", [False, True])
def test_integers_are_those_of_the_maths(bits: int, use_zero_point: bool) -> None:
    w = weight(37, 5)
    for axis in (0, -1):
        want = integer.quant_tensor(jnp.asarray(w), 16, axis, 0.9, use_zero_point, bits)
        got = quant_utils.quant_tensor(w, 16, axis, 0.9, use_zero_point, bits)
        scales = quant_utils.find_scales(w, 16, axis, 0.9, use_zero_point, bits)
        codes = quant_utils.rtn(w, scales[0], 16, axis, scales[1], bits)
        both = jax.tree.leaves((got, scales, codes)), jax.tree.leaves((want, want[1:], want[0]))
        for mine, theirs in zip(*both, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        dq = quant_utils.dq_tensor(got[0], got[1], 16, axis, got[2])
        np.testing.assert_array_equal(dq, integer.dq_tensor(want[0], want[1], 16, axis, want[2]))


@pytest.mark.parametrize("axis", [0, 1])
def test_flat_alpha_goes_line_by_line(axis: int) -> None:
    w = weight(24, 24)
    alpha = np.random.default_rng(1).uniform(0.5, 1, (3, 24)).astype(np.float32)  # [n_blocks, line]
    shaped = alpha if axis == 0 else alpha.T
    want = quant_utils.quant_tensor(w, 8, axis, shaped)
    for flat in (alpha.T.ravel(), alpha.T.ravel().astype(np.float64)):
        for got, theirs in zip(quant_utils.quant_tensor(w, 8, axis, flat)[:2], want[:2], strict=True):
            np.testing.assert_array_equal(got, theirs)


def test_alpha_broadcasts() -> None:
    w = weight(32, 4)
    per_column = np.array([1, 0.5, 0.75, 0.9], np.float32)
    got, _ = quant_utils.find_scales(w, 8, alpha=per_column)
    whole, _ = quant_utils.find_scales(w, 8)
    np.testing.assert_allclose(got, whole * per_column, rtol=1e-6)
    for alpha in (0.5, np.float64(0.5), np.float16(0.5), jnp.float32(0.5), np.full((4, 1), 0.5)):
        np.testing.assert_allclose(quant_utils.find_scales(w, 8, alpha=alpha)[0], whole * np.float32(0.5), rtol=1e-6)


@pytest.mark.parametrize(
    "alpha",
    [
        *(0, -1.0, np.ones(5), np.ones((2, 4)), np.ones((1, 4, 4))),
        *(np.float32(0), jnp.float32(-1), np.array([1, 1, 0, 1]), np.full((4, 4), np.nan), "x", None, True),
    ],
)
def test_alpha_that_fits_nothing(alpha: Any) -> None:
    with pytest.raises(JaxqError, match="alpha"):
        quant_utils.find_scales(weight(32, 4), 8, alpha=alpha)


def test_a_traced_alpha_is_not_looked_at() -> None:
    w = weight(32, 4)
    got = jax.jit(lambda alpha: quant_utils.find_scales(w, 8, alpha=alpha)[0])(jnp.float32(0.5))
    np.testing.assert_allclose(got, quant_utils.find_scales(w, 8, alpha=0.5)[0], rtol=1e-6)


@pytest.mark.parametrize("block_size", ["16", None, 16.0, True])
def test_block_sizes_are_integers(block_size: Any) -> None:
    w, s = weight(32, 4), np.ones((2, 4), np.float32)
    for call in (
        lambda: quant_utils.find_scales(w, block_size),
        lambda: quant_utils.quant_tensor(w, block_size),
        lambda: quant_utils.rtn(w, s, block_size),
        lambda: quant_utils.dq_tensor(w, s, block_size),
        lambda: quant_utils.get_amax(w, 0, block_size),
    ):
        with pytest.raises(JaxqError, match=f"block_size is {block_size!r}: give an integer"):
            call()
    np.testing.assert_array_equal(quant_utils.find_scales(w, np.int64(16))[0], quant_utils.find_scales(w, 16)[0])  # pyright: ignore[reportArgumentType]


def test_empty_axes_have_no_block() -> None:
    empty = np.zeros((0, 4), np.float32)
    for call in (quant_utils.find_scales, quant_utils.quant_tensor, lambda w, b: quant_utils.get_amax(w, 0, b)):
        with pytest.raises(JaxqError, match="not empty"):
            call(empty, -1)


def test_lists_are_arrays() -> None:
    w = weight(8, 4)
    pairs: list[tuple[Any, Any]] = [
        (quant_utils.get_amax(w.tolist(), 0, 4), quant_utils.get_amax(w, 0, 4)),
        (quant_utils.pack_weights_to_int4(w.tolist()), quant_utils.pack_weights_to_int4(w)),
        (quant_utils.find_scales(w.tolist(), 4)[0], quant_utils.find_scales(w, 4)[0]),
        (quant_utils.reshape_scales_for_per_channel_nodes({"a": [[1.0, 2.0]]}, -1)["a"], [1, 2]),  # pyright: ignore[reportArgumentType]
    ]
    for mine, theirs in pairs:
        assert isinstance(mine, np.ndarray)
        np.testing.assert_array_equal(mine, theirs)
    assert quant_utils.update_block_size(8, 16, 0, w.tolist()) == 8
    for wrong in ([[1.0], [1.0, 2.0]], "weight", [None]):
        with pytest.raises(JaxqError, match="the weight is"):
            quant_utils.get_amax(wrong, 0, 4)  # pyright: ignore[reportArgumentType]


def test_float_zero_points() -> None:
    w = weight(32, 4)
    q, s, zp = quant_utils.quant_tensor(w, 8, use_zero_point=True)
    assert zp is not None and zp.dtype == np.uint8
    np.testing.assert_array_equal(quant_utils.rtn(w, s, 8, zp=zp.astype(np.float32)), q)
    want = quant_utils.dq_tensor(q, s, 8, zp=zp)
    np.testing.assert_array_equal(quant_utils.dq_tensor(q, s, 8, zp=zp.astype(np.float32)), want)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes(dtype: Any) -> None:
    q, s, _ = quant_utils.quant_tensor(weight(32, 4).astype(dtype), 8)
    assert s.dtype == (np.float32 if dtype is np.float64 else dtype)
    assert quant_utils.dq_tensor(q, s, 8).dtype == s.dtype


def test_a_jax_array_among_the_inputs_gives_jax() -> None:
    q, s, _ = quant_utils.quant_tensor(weight(32, 4), 8)
    assert isinstance(quant_utils.dq_tensor(q, jnp.asarray(s), 8), jax.Array)


def test_numpy_constants_in_a_traced_function() -> None:
    got = jax.jit(lambda: quant_utils.find_scales(weight(32, 4), 8)[0])()
    np.testing.assert_array_equal(got, quant_utils.find_scales(weight(32, 4), 8)[0])


def test_nvfp4_scale_of_a_weight() -> None:
    s2 = quant_utils.get_weights_scaling_factor_2(np.array([[1, -2688]], np.float16))
    assert isinstance(s2, np.generic) and s2.dtype == "float32" and s2 == 1
    for amax in (0, 1e-36):  # XLA flushes the second one's quotient, no normal number, to zero
        assert quant_utils.get_weights_scaling_factor_2(np.full((2, 2), amax, np.float32)) == 1


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_nvfp4_of_what_is_not_finite(wrong: float) -> None:
    w = weight(4, 16)
    w[2, 3] = wrong
    with pytest.raises(JaxqError, match="finite"):
        quant_utils.get_weights_scaling_factor_2(w)
    jax.jit(quant_utils.get_weights_scaling_factor_2)(w)  # a trace cannot tell


def test_nvfp4_round_trip() -> None:
    """The page's functions with E4M3 scales and E2M1 codes: within an eighth of each block's greatest weight."""
    w = weight(6, 40)  # a ragged last block
    s2 = quant_utils.get_weights_scaling_factor_2(w)
    s = quant_utils.get_weights_scaling_factor(w, 16, s2)
    assert s.shape == (6, 3)
    np.testing.assert_allclose(s, magnitudes(w, 1, 16) / (6 * s2), rtol=1e-6)
    stored = round_e4m3(jnp.asarray(s))
    scaled = quant_utils.quantize(w, 16, np.asarray(stored), s2)
    assert isinstance(scaled, np.ndarray) and scaled.shape == w.shape
    block_scales = np.repeat(np.asarray(stored, np.float32) * s2, 16, axis=1)[:, :40]
    np.testing.assert_allclose(scaled, w / block_scales, rtol=1e-6)
    back = np.asarray(decode_e2m1(encode_e2m1(jnp.asarray(scaled)))) * block_scales
    assert (np.abs(back - w) <= np.repeat(magnitudes(w, 1, 16), 16, axis=1)[:, :40] / 5.5).all()


def test_nvfp4_zero_blocks_have_scale_one() -> None:
    w = weight(2, 32)
    w[0, :16] = 0
    assert quant_utils.get_weights_scaling_factor(w, 16, np.float32(0.5))[0, 0] == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: quant_utils.get_weights_scaling_factor(weight(2, 3, 16), 16, 1.0), "matrix"),
        (lambda: quant_utils.get_weights_scaling_factor(weight(2, 16), 0, 1.0), "block_size is 0"),
        (lambda: quant_utils.get_weights_scaling_factor(weight(2, 16), 16, np.ones(2)), "one such scale"),
        (lambda: quant_utils.quantize(weight(2, 16), 16, np.ones((1, 1), np.float32), 1.0), r"needs \[2, 1\]"),
        (lambda: quant_utils.get_amax(weight(4), 0, 2), "dimensions"),
        (lambda: quant_utils.get_amax(weight(4, 4, 4), 0, 2), "axis 1 or 2"),
        (lambda: quant_utils.get_amax(weight(4, 4), 2, 2), "axes"),
        (lambda: quant_utils.get_amax(weight(4, 4), 0, 0), "block_size is 0"),
        (lambda: quant_utils.compute_e8m0(np.ones(3, np.float32), (4, 4), 0, 2), "8 blocks"),
        (lambda: quant_utils.compute_e8m0(np.ones(4, np.float32), (4,), 0, 1), "dimensions"),
        (lambda: quant_utils.compute_e8m0(np.array([[-1.0]]), (1, 1), 0, 1), "negative"),
        (lambda: quant_utils.compute_e8m0(np.array([[np.nan]]), (1, 1), 0, 1), "NaN"),
        (lambda: quant_utils.pack_weights_to_int4(weight(3, 4)), "even"),
        (lambda: quant_utils.pack_weights_to_int4(np.array(1.0)), "even"),
        (lambda: quant_utils.get_num_bits({"w": 9}, "w"), "num_bits is 9"),
        (lambda: quant_utils.get_num_bits({"w": "8"}, "w"), "'8'"),  # pyright: ignore[reportArgumentType]
        (lambda: quant_utils.get_num_bits({"w": {"axis": 0}}, "w"), "number of bits"),
        (lambda: quant_utils.get_num_bits([8], "w"), "give a dictionary"),  # pyright: ignore[reportArgumentType]
        (lambda: quant_utils.find_scales(weight(4, 4), 2, num_bits="4"), "num_bits is '4'"),  # pyright: ignore[reportArgumentType]
        (lambda: quant_utils.find_scales(weight(4, 4), 2, 0.5), "quantize_axis is 0.5"),  # pyright: ignore[reportArgumentType]
        (lambda: quant_utils.update_block_size(8, 32), "w is missing"),
        (lambda: quant_utils.update_block_size(4, -1), "w is missing"),
        (lambda: quant_utils.update_block_size(4, -1, 2, weight(2, 2)), "axes"),
        (lambda: quant_utils.reshape_scales_for_per_channel_nodes({"w": weight(2, 3)}, -1), "'w'"),
        (lambda: quant_utils.rtn(weight(32, 4), weight(2, 4), 8), "scales"),
        (lambda: quant_utils.dq_tensor(weight(32, 4), weight(4, 4), 8, zp=np.array(8)), "zero points"),
    ],
)
def test_refused(call: Any, text: str) -> None:
    with pytest.raises(JaxqError, match=text):
        call()


@pytest.mark.parametrize("shape", [(24, 10), (20, 7), (1, 9), (9, 1), (2, 24, 10), (3, 5, 17)])
@pytest.mark.parametrize("block_size", [8, -1])
def test_amax_and_exponents(shape: tuple[int, ...], block_size: int) -> None:
    """Ragged blocks too; the flat numbers are in the order that compute_e8m0 expects."""
    w = weight(*shape) * np.float32(1000)
    for axis in (0, 1, -1) if len(shape) == 2 else (1, 2, -1):
        block = shape[axis] if block_size == -1 else block_size
        want = magnitudes(w, axis, block)
        amax = quant_utils.get_amax(w, axis, block_size)
        np.testing.assert_array_equal(amax.ravel(), want.ravel())
        if len(shape) == 2:
            assert amax.ndim == 1
        e8m0 = quant_utils.compute_e8m0(amax, shape, axis, block_size)
        assert e8m0.shape == want.shape and e8m0.dtype == np.float32
        mantissa, exponent = np.frexp(want / np.float32(448))
        np.testing.assert_array_equal(e8m0, exponent - (mantissa == 0.5) + 127)


def test_amax_keeps_the_dtype() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert quant_utils.get_amax(weight(8, 8).astype(dtype), 0, 4).dtype == dtype


def test_exponents_are_exact() -> None:
    """Just above 448 * 2^k the exponent is k + 1 for every k, and at its lower end 0."""
    k = np.arange(-126, 119)
    exact = (448 * 2.0**k).astype(np.float32)
    below, above = (np.nextafter(exact, np.float32(end)) for end in (0, np.inf))
    for amax, want in ((exact, k), (below, k), (above, k + 1)):
        e8m0 = quant_utils.compute_e8m0(amax, (1, k.size), 1, 1)
        np.testing.assert_array_equal(e8m0[0], want + 127)
    tiny = np.array([[0, 1e-45, 1e-38, 448 * 2.0**-127]], np.float32)
    np.testing.assert_array_equal(quant_utils.compute_e8m0(tiny, (1, 4), 1, 1), np.zeros((1, 4)))


PACKERS = [quant_utils.pack_float32_to_4bit_optimized, quant_utils.pack_float32_to_4bit_cpp_based]


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int64, bool]
)
def test_packing(pack: Any, signed: bool, dtype: Any) -> None:
    array = (weight(3, 5) * 10).astype(dtype)
    packed = pack(array, signed)
    assert isinstance(packed, np.ndarray) and packed.shape == (8,) and packed.dtype == np.uint8
    low, high = (-8, 7) if signed else (0, 15)
    want = np.rint(np.clip(array.astype(np.float64), low, high))
    np.testing.assert_array_equal(unpack_int4(jnp.asarray(packed), (3, 5), signed), want)
    assert packed[-1] >> 4 == 0


@pytest.mark.parametrize("pack", PACKERS)
def test_ties_go_to_even(pack: Any) -> None:
    packed = pack([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 6.5], True)
    np.testing.assert_array_equal(unpack_int4(jnp.asarray(packed), (8,), True), [0, 2, 2, 4, 0, -2, -2, 6])


@pytest.mark.parametrize("pack", PACKERS)
def test_packing_of_sequences(pack: Any) -> None:
    assert pack([1, 2, 3], True).tolist() == [0x21, 3]
    assert pack([[1.0, 2.0], (3.0, 4.0)], False).tolist() == [0x21, 0x43]
    assert pack([], True).shape == (0,)
    assert pack(np.array([2.5 + 1e-12]), True).tolist() == [3]  # float32 would have it as a tie


def test_packing_of_a_weight() -> None:
    w = weight(4, 3) * 5
    packed = quant_utils.pack_weights_to_int4(w)
    assert packed.shape == (2, 3)
    want = np.rint(np.clip(w, -8, 7))
    np.testing.assert_array_equal(unpack_int4(jnp.asarray(packed).ravel(), (4, 3), True), want)


def test_bits_and_block_sizes() -> None:
    record = {"precision": 8, "block_size": -1, "axis": 0}
    assert quant_utils.get_num_bits({"w": 8}, "v") == 4
    assert quant_utils.get_num_bits({"w": record}, "w") == 8
    w = weight(30, 7)
    assert quant_utils.update_block_size(8, 16, 1, w) == 7
    assert quant_utils.update_block_size(4, -1, -2, w) == 30
    assert quant_utils.update_block_size(3, 16, 0, w) == 16


def test_scales_of_per_channel_weights_are_flat() -> None:
    scales = {"a": weight(1, 3), "b": weight(2, 3), "c": weight(5, 1)}
    info = {"a": 8, "b": 4, "c": {"precision": 4, "block_size": -1}}
    got = quant_utils.reshape_scales_for_per_channel_nodes(scales, 16, info)
    assert [s.shape for s in got.values()] == [(3,), (2, 3), (5,)]
    assert scales["a"].shape == (1, 3) and got["b"] is scales["b"]
    assert quant_utils.reshape_scales_for_per_channel_nodes({"a": scales["a"]}, 16)["a"].shape == (1, 3)
    record = {"a": {"precision": 8, "block_size": 32}}
    assert quant_utils.reshape_scales_for_per_channel_nodes({"a": scales["a"]}, 16, record)["a"].shape == (1, 3)
