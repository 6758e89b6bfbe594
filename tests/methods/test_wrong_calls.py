"""Wrong calls of jaxq's array functions get one sentence: what came, and what to give instead."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxq

W = jnp.asarray(np.random.default_rng(0).normal(size=(32, 8)), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(64, 32)), jnp.float32)
KEEP = jnp.ones(64)
SUMS = jaxq.accumulate(jaxq.zero_sums(32), X, KEEP)
M = jaxq.finish(SUMS)
FMT = jaxq.IntegerFormat(16)
SCALES = FMT.plain_scales(W)
FORMATS = [FMT, jaxq.make_format("uint4", 16), jaxq.Nvfp4Format(), jaxq.MxFormat("mxfp4"), jaxq.MxFormat("mxfp8")]
NAN = W.at[3, 2].set(jnp.nan)
INF = W.at[0, 0].set(-jnp.inf).at[1, 1].set(jnp.inf)
ALPHAS, RATIOS = jnp.array(jaxq.alpha_grid(0.5)), jnp.array(jaxq.ratio_grid(0.8, 0.1))
LIST = [[1.0, 2.0]]

# The functions of a weight, and of a weight and a second moment.
OF_WEIGHT: dict[str, Callable] = {
    "find_scales": lambda w: jaxq.find_scales(w, 16),
    "rtn": lambda w: jaxq.rtn(w, SCALES.s, 16),
    "quant_tensor": lambda w: jaxq.quant_tensor(w, 16),
    "weight_magnitude": lambda w: jaxq.weight_magnitude(w, 16),
    "fake_quant": lambda w: jaxq.fake_quant(w, FMT),
    "gptq_round": lambda w: jaxq.gptq_round(w, M.h, SCALES, FMT),
    "search_block_scales": lambda w: jaxq.search_block_scales(w, M.h, FMT),
    "search_clip": lambda w: jaxq.search_clip(w, M.h, RATIOS, FMT),
    "search_scales": lambda w: jaxq.search_scales(w, M, ALPHAS, FMT),
    "search_shared_scales": lambda w: jaxq.search_shared_scales([(w, FMT)], M, ALPHAS),
    **{f"{fmt.dtype}.plain_scales": fmt.plain_scales for fmt in FORMATS},
    **{f"{fmt.dtype}.quantize": lambda w, fmt=fmt: fmt.quantize(w) for fmt in FORMATS},
    **{f"{fmt.dtype}.round_trip": fmt.round_trip for fmt in FORMATS},
    **{f"{fmt.dtype}.encode": lambda w, fmt=fmt: fmt.encode(w, fmt.plain_scales(W)) for fmt in FORMATS},
    **{f"{fmt.dtype}.encoded": lambda w, fmt=fmt: fmt.encoded(w, fmt.plain_scales(W)) for fmt in FORMATS},
}
OF_MOMENT: dict[str, Callable] = {
    "gptq_round": lambda h: jaxq.gptq_round(W, h, SCALES, FMT),
    "search_block_scales": lambda h: jaxq.search_block_scales(W, h, FMT),
    "search_clip": lambda h: jaxq.search_clip(W, h, RATIOS, FMT),
    "output_error": lambda h: jaxq.output_error(W, h),
    "damp": lambda h: jaxq.damp(h, 0.1),
    "shrunk": lambda h: jaxq.shrunk(h, M.tokens, 10.0),
}
OF_MOMENTS: dict[str, Callable] = {
    "search_scales": lambda m: jaxq.search_scales(W, m, ALPHAS, FMT),
    "search_shared_scales": lambda m: jaxq.search_shared_scales([(W, FMT)], m, ALPHAS),
}
OF_FORMAT: dict[str, Callable] = {
    "fake_quant": lambda fmt: jaxq.fake_quant(W, fmt),
    "gptq_round": lambda fmt: jaxq.gptq_round(W, M.h, SCALES, fmt),
    "search_block_scales": lambda fmt: jaxq.search_block_scales(W, M.h, fmt),
    "search_clip": lambda fmt: jaxq.search_clip(W, M.h, RATIOS, fmt),
    "search_scales": lambda fmt: jaxq.search_scales(W, M, ALPHAS, fmt),
    "search_shared_scales": lambda fmt: jaxq.search_shared_scales([(W, fmt)], M, ALPHAS),
}
OF_SCALES: dict[str, Callable] = {
    "gptq_round": lambda s: jaxq.gptq_round(W, M.h, s, FMT),
    "fake_quant": lambda s: jaxq.fake_quant(W, FMT, s),
    **{f"{fmt.dtype}.encode": lambda s, fmt=fmt: fmt.encode(W, s) for fmt in FORMATS},
    **{f"{fmt.dtype}.encoded": lambda s, fmt=fmt: fmt.encoded(W, s) for fmt in FORMATS},
}
OF_BLOCK_SIZE: dict[str, Callable] = {
    "find_scales": lambda n: jaxq.find_scales(W, n),
    "find_scales by name": lambda n: jaxq.find_scales(W, block_size=n),
    "rtn": lambda n: jaxq.rtn(W, SCALES.s, n),
    "dq_tensor": lambda n: jaxq.dq_tensor(jnp.zeros((32, 8), jnp.int8), SCALES.s, n),
    "quant_tensor": lambda n: jaxq.quant_tensor(W, n),
    "weight_magnitude": lambda n: jaxq.weight_magnitude(W, n),
    "IntegerFormat": jaxq.IntegerFormat,
    "make_format": lambda n: jaxq.make_format("int4", n),
    "make_format nvfp4": lambda n: jaxq.make_format("nvfp4", n),
}


@pytest.fixture(autouse=True)
def users_have_no_type_checker() -> Iterator[None]:
    """The tests' own checker of annotations would refuse many of these calls before jaxq sees them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def refused(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(jaxq.JaxqError) as error:
        call()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OF_WEIGHT)
def test_weights(name):
    refused(lambda: OF_WEIGHT[name](LIST), "w is a list: give an array of JAX or numpy, such as jnp.asarray(w)")
    refused(lambda: OF_WEIGHT[name]((W, W)), "w is a tuple: give an array of JAX or numpy")
    refused(lambda: OF_WEIGHT[name](NAN), "w holds 1 number that is NaN or infinite")
    refused(lambda: OF_WEIGHT[name](INF), "w holds 2 numbers that are NaN or infinite")
    refused(lambda: OF_WEIGHT[name](np.asarray(NAN)), "w holds 1 number that is NaN or infinite")
    refused(lambda: OF_WEIGHT[name](W.astype(jnp.int32)), "has type int32: give float32, float16 or bfloat16")


@pytest.mark.parametrize("name", ["rtn", "quant_tensor", "fake_quant", "gptq_round", "search_clip"])
def test_weights_of_numpy_and_of_a_trace(name):
    """No check keeps numpy's arrays out, and none needs the values of a trace, where NaN is not seen."""
    expected = jax.tree.leaves(OF_WEIGHT[name](W))
    for got in (OF_WEIGHT[name](np.asarray(W)), jax.jit(OF_WEIGHT[name])(W)):
        for a, b in zip(jax.tree.leaves(got), expected, strict=True):
            np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-5, atol=1e-5)
    jax.jit(OF_WEIGHT[name])(NAN)
    jax.eval_shape(OF_WEIGHT[name], W)


@pytest.mark.parametrize("name", OF_MOMENT)
def test_second_moments(name):
    refused(lambda: OF_MOMENT[name](X), "h has shape [64, 32]: give second moments [c_in, c_in], not tokens; jaxq.fin")
    refused(lambda: OF_MOMENT[name](M), "h is Moments, which holds more: give its second moment, moments.h")
    refused(lambda: OF_MOMENT[name](LIST), "h is a list: give an array")


@pytest.mark.parametrize("name", OF_MOMENTS)
def test_moments(name):
    how = "give Moments, as jaxq.finish(jaxq.accumulate(sums, tokens, keep)) makes them from tokens"
    refused(lambda: OF_MOMENTS[name](X), f"of shape [64, 32]: {how}")
    refused(lambda: OF_MOMENTS[name](np.asarray(X)), f"moments is ndarray of shape [64, 32]: {how}")
    refused(lambda: OF_MOMENTS[name](SUMS), f"moments is MomentSums: {how}")


@pytest.mark.parametrize("name", OF_FORMAT)
def test_formats(name):
    refused(
        lambda: OF_FORMAT[name]("int4"),
        "fmt is 'int4': give a format, such as jaxq.make_format('int4', block_size=32)",
    )
    refused(lambda: OF_FORMAT[name]("nvfp4"), "such as jaxq.make_format('nvfp4')")
    refused(lambda: OF_FORMAT[name](4), "fmt is 4: give a format")


@pytest.mark.parametrize("name", OF_SCALES)
def test_scales(name):
    refused(lambda: OF_SCALES[name](jaxq.find_scales(W, 16)), "scales is tuple: give jaxq.Scales(s, zp), with what ")
    refused(lambda: OF_SCALES[name](SCALES.s), ": give jaxq.Scales(s, zp)")


@pytest.mark.parametrize("name", OF_BLOCK_SIZE)
def test_block_sizes(name):
    refused(lambda: OF_BLOCK_SIZE[name](16.0), "block_size is 16.0: give an integer, such as 16")
    refused(lambda: OF_BLOCK_SIZE[name]("16"), "block_size is '16': give an integer")
    refused(lambda: OF_BLOCK_SIZE[name](True), "block_size is True: give an integer")
    OF_BLOCK_SIZE[name](np.int64(16))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: jaxq.dq_tensor(W.astype(jnp.uint8), SCALES.s, 16),
            "w holds uint8 codes and zp is None: give",
        ),
        (lambda: FMT.dequantize(jaxq.Quantized(W.astype(jnp.uint8), SCALES.s)), "w holds uint8 codes and zp is None"),
        (lambda: FMT.dequantize(jaxq.quant_tensor(W, 16)), "quantized is tuple: give jaxq.Quantized(q, s, zp)"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.dq_tensor(LIST, SCALES.s, 16), "w is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.dq_tensor(jaxq.quant_tensor(W, 16), SCALES.s, 16), "w is a tuple"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.rtn(W, jaxq.find_scales(W, 16), 16), "s is a tuple"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.rtn(W, SCALES.s, 16, zp=LIST), "zp is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.quant_tensor(W, 16, alpha=LIST), "alpha is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: FMT.quantize(W, "0.9"), "clip_ratio is a str"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.find_scales(W, 16, 0.0), "quantize_axis is 0.0: give an integer, such as 0"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.find_scales(W, 16, num_bits=4.0), "num_bits is 4.0: give an integer, such as 4"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.IntegerFormat(16, num_bits="4"), "num_bits is '4'"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.make_format(4), "dtype is 4: choose one of int2, "),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.pack_int4(W), "q has type float32: give codes as integers"),
        (lambda: jaxq.pack_int4([1, 2]), "q is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.unpack_int4(jnp.zeros(2, jnp.uint8), [4], True), "shape is [4]: give a tuple of integers"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.unpack_int4(jnp.zeros(2, jnp.uint8), (4.0,), True), "a number in shape is 4.0"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.encode_e2m1([0.5]), "x is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.decode_e2m1(W), "codes has type float32: give codes as integers"),
        (lambda: jaxq.zero_sums(32.0), "c_in is 32.0: give an integer, such as 32"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.zero_sums(0), "c_in is 0: give the number of channels"),
        (lambda: jaxq.accumulate(M, X, KEEP), "sums is Moments: give MomentSums"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.accumulate(SUMS, X.tolist(), KEEP), "x is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.accumulate(SUMS, X, [1.0] * 64), "keep is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.accumulate(SUMS, X[:, :8], KEEP), "x has shape [64, 8] and keep [64]"),
        (lambda: jaxq.finish(X), "give MomentSums, as jaxq.zero_sums and jaxq.accumulate do"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.output_error(W[:16], M.h), "d has shape [16, 8] and h [32, 32]"),
        (lambda: jaxq.output_error(LIST, M.h), "d is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.damp(M.h, "0.1"), "damping is a str"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.awq_scale([1.0], jnp.ones(1), 0.5), "a is a list"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.search_scales(W, M, ALPHAS, FMT, columns=8.0), "columns is 8.0: give an integer, such as 8"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.search_scales(W, M, ALPHAS, FMT, batch_size=0), "batch_size is 0: give the number of candid"),
        (lambda: jaxq.gptq_round(W, M.h, SCALES, FMT, descent_passes=1.0), "descent_passes is 1.0: give an integer"),  # pyright: ignore[reportArgumentType]
        (lambda: jaxq.gptq_round(W, M.h, SCALES, FMT, damping=[0.1]), "damping is a list"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_single_arguments(call, sentence):
    refused(call, sentence)


def test_uint8_codes_with_zero_points_are_taken():
    q, s, zp = jaxq.quant_tensor(W, 16, use_zero_point=True)
    assert float(jnp.abs(jaxq.dq_tensor(q, s, 16, zp=zp) - W).max()) < 0.6 * float(s.max())


def test_the_counts_of_shrunk_may_be_an_integer():
    np.testing.assert_array_equal(jaxq.shrunk(M.h, 64, 10.0), jaxq.shrunk(M.h, M.tokens, 10.0))  # pyright: ignore[reportArgumentType]


def test_scales_of_a_format_and_of_an_array_have_different_names():
    assert not hasattr(FMT, "find_scales")
    s, zp = jaxq.find_scales(W, 16)
    assert zp is None
    np.testing.assert_array_equal(FMT.plain_scales(W).s, s)
