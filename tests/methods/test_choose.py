"""jaxq.methods.registry: every method's choice, and its errors against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq.methods.choose as methods
from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.microscaling import MxFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.formats.registry import WeightFormat
from jaxq.methods.awq import awq_scale, weight_magnitude
from jaxq.methods.choose import Choice, Part
from jaxq.methods.grids import IDENTITY, alpha_grid, ratio_grid
from jaxq.methods.measure import measure
from jaxq.methods.registry import METHODS, MethodSpec, find_method
from jaxq.numerics.moments import Moments, shrunk

C_IN, C_OUT, TOKENS = 40, 6, 50
FORMATS = {
    "int4": IntegerFormat(16, full_range=True),
    "uint3_float16": IntegerFormat(16, 3, use_zero_point=True, scale_dtype="float16"),
}
SEARCHES = ("rtn", "awq_lite", "awq_clip", "awq_full")
EACH_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
EACH_METHOD = pytest.mark.parametrize("name", SEARCHES)


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Moments]:
    """Activations with two large channels, a weight with heavy tails, and the moments, made in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TOKENS, C_IN)) * rng.uniform(0.2, 2, size=C_IN) + 0.3 * rng.normal(size=(TOKENS, 1))
    x[:, [3, 21]] *= 10
    w = rng.standard_t(4, size=(C_IN, C_OUT)).astype(np.float32)
    h, a = jnp.asarray(x.T @ x / TOKENS, jnp.float32), jnp.asarray(abs(x).mean(axis=0), jnp.float32)
    return x, w, Moments(h, a, jnp.array(TOKENS, jnp.int32))


def choose(name: str, w: np.ndarray, moments: Moments, fmt: IntegerFormat) -> Choice:
    return choose_parts(name, [(jnp.asarray(w), fmt)], moments)[0]


def choose_parts(name: str, parts: list[Part], moments: Moments | None) -> list[Choice]:
    spec = MethodSpec(name, parts[0][1], alpha_step=0.25, clip_step=0.1)
    return methods.choose(METHODS[name], parts, moments, spec)


def restored(choice: Choice, fmt: IntegerFormat) -> np.ndarray:
    """The weight that the stored arrays stand for, in float64."""
    block = C_IN if fmt.block_size == -1 else fmt.block_size
    rows = [i // block for i in range(C_IN)]
    zp = 0 if choice.quantized.zp is None else np.asarray(choice.quantized.zp, np.float64)[rows]
    scaled = (np.asarray(choice.quantized.q, np.float64) - zp) * np.asarray(choice.quantized.s, np.float64)[rows]
    return scaled / np.asarray(choice.s, np.float64)[:, None]


@EACH_FORMAT
@EACH_METHOD
def test_the_parts_of_a_choice_fit(name, fmt, round_trip):
    _, w, moments = data()
    choice = choose(name, w, moments, fmt)
    s, ratio = np.asarray(choice.s, np.float64)[:, None], np.asarray(choice.clip_ratio, np.float64)
    assert choice.quantized.s.dtype == jnp.dtype(fmt.scale_dtype)
    np.testing.assert_allclose(restored(choice, fmt), round_trip(w * s, fmt, ratio) / s, rtol=1e-5, atol=1e-6)
    if name in ("awq_lite", "awq_full"):
        assert float(choice.alpha) in np.array(alpha_grid(0.25), np.float32)
        scale = awq_scale(moments.a, weight_magnitude(jnp.asarray(w), fmt.block_size), choice.alpha)
        np.testing.assert_allclose(np.asarray(choice.s), np.asarray(scale), rtol=1e-6)
        assert len(np.unique(s)) > 1
    else:
        assert float(choice.alpha) == IDENTITY
        assert (s == 1).all()
    if name in ("awq_clip", "awq_full"):
        assert np.isin(np.asarray(choice.clip_ratio), np.array(ratio_grid(0.5, 0.1), np.float32)).all()
        assert (ratio < 1).any()
    else:
        assert (ratio == 1).all()


@EACH_FORMAT
@EACH_METHOD
def test_measure_is_the_error_of_the_stored_arrays(name, fmt, round_trip):
    x, w, moments = data()
    choice = choose(name, w, moments, fmt)
    errors = measure(jnp.asarray(w), choice, moments, fmt)
    new = restored(choice, fmt)
    want = {
        "weight": ((new - w) ** 2).sum(axis=0),
        "weight_energy": (w.astype(np.float64) ** 2).sum(axis=0),
        "output": ((x @ new - x @ w) ** 2).mean(axis=0),
        "output_rtn": ((x @ (round_trip(w, fmt) - w)) ** 2).mean(axis=0),
        "output_energy": ((x @ w) ** 2).mean(axis=0),
    }
    for field, exact in want.items():
        np.testing.assert_allclose(np.asarray(getattr(errors, field)), exact, rtol=2e-5, err_msg=field)
    unseen = measure(jnp.asarray(w), choice, None, fmt)
    np.testing.assert_array_equal(np.asarray(unseen.weight), np.asarray(errors.weight))
    assert (unseen.output, unseen.output_rtn, unseen.output_energy) == (None, None, None)


@pytest.mark.parametrize("seed", range(4))
@EACH_FORMAT
def test_a_larger_search_never_does_worse(fmt, seed):
    _, w, moments = data(seed)
    loss = {}
    for name in SEARCHES:
        errors = measure(jnp.asarray(w), choose(name, w, moments, fmt), moments, fmt)
        assert errors.output is not None and errors.output_rtn is not None
        loss[name] = np.asarray(errors.output, np.float64)
        if name == "rtn":
            np.testing.assert_allclose(loss[name], np.asarray(errors.output_rtn), rtol=1e-5)
    slack = 1 + 1e-5
    assert loss["awq_lite"].sum() <= slack * loss["rtn"].sum()
    assert (loss["awq_clip"] <= slack * loss["rtn"]).all()
    assert (loss["awq_full"] <= slack * loss["awq_lite"]).all()
    assert loss["awq_full"].sum() < 0.95 * loss["rtn"].sum()


ALL_FORMATS = FORMATS | {"nvfp4": Nvfp4Format(), "mxfp4": MxFormat("mxfp4"), "int8": IntegerFormat(-1, 8)}


def output_loss(name: str, fmt: WeightFormat, moments: Moments, w: np.ndarray, block_scales: bool = False) -> float:
    spec = MethodSpec(name, fmt, alpha_step=0.25, clip_step=0.1, block_scales=block_scales, shrinkage=0.0)
    (choice,) = methods.choose(METHODS[name], [(jnp.asarray(w), fmt)], moments, spec)
    errors = measure(jnp.asarray(w), choice, moments, fmt)
    assert errors.output is not None
    return float(np.asarray(errors.output, np.float64).sum())


@pytest.mark.parametrize("fmt", ALL_FORMATS.values(), ids=ALL_FORMATS)
def test_searched_scales_and_gptq_lose_less(fmt):
    _, w, moments = data(seed=3)
    loss = {name: output_loss(name, fmt, moments, w) for name in ("rtn", "rtn_search", "gptq", "awq_gptq")}
    assert loss["gptq"] < 0.6 * loss["rtn"]
    assert loss["gptq"] < loss["rtn_search"]
    assert loss["awq_gptq"] < 0.6 * loss["rtn"]


@pytest.mark.parametrize("name", ["awq_lite", "awq_clip", "awq_full"])
def test_block_scales_are_searched_in_every_method_that_searches(name):
    _, w, moments = data(seed=3)
    fmt = FORMATS["int4"]
    assert output_loss(name, fmt, moments, w, block_scales=True) < 0.95 * output_loss(name, fmt, moments, w)
    plain, same = (output_loss("rtn", fmt, moments, w, block_scales=b) for b in (False, True))
    assert plain == same


def test_awq_gptq_is_gptq_of_the_scaled_weight():
    _, w, moments = data(seed=3)
    fmt = FORMATS["int4"]
    got = choose("awq_gptq", w, moments, fmt)
    s = np.asarray(got.s)
    assert s.min() < 0.9 * s.max()
    scaled = Moments(moments.h / s[:, None] / s[None, :], moments.a / s, moments.tokens)
    want = choose("gptq", w * s[:, None], scaled, fmt)
    np.testing.assert_array_equal(np.asarray(got.quantized.q), np.asarray(want.quantized.q))
    np.testing.assert_array_equal(np.asarray(got.quantized.s), np.asarray(want.quantized.s))


def test_the_ratio_of_searched_scales_is_that_of_the_steps():
    _, w, moments = data(seed=3)
    fmt = FORMATS["int4"]
    choice = choose("rtn_search", w, moments, fmt)
    want = abs(np.asarray(choice.quantized.s)) / abs(np.asarray(fmt.quantize(jnp.asarray(w)).s))
    np.testing.assert_allclose(choice.clip_ratio, want, rtol=1e-6)
    assert (want != 1).any()


def test_round_to_nearest_needs_no_data(round_trip):
    _, w, moments = data()
    fmt = FORMATS["int4"]
    (blind,) = choose_parts("rtn", [(jnp.asarray(w), fmt)], None)
    np.testing.assert_allclose(restored(blind, fmt), round_trip(w, fmt), rtol=1e-6)
    for got, want in zip(jax.tree.leaves(blind), jax.tree.leaves(choose("rtn", w, moments, fmt)), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_half_precision_weights_are_quantized_in_float32():
    _, w, moments = data()
    low = np.asarray(w, jnp.dtype("bfloat16"))
    fmt = FORMATS["int4"]
    got, want = choose("awq_full", low, moments, fmt), choose("awq_full", low.astype(np.float32), moments, fmt)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("zero", ["weight", "activation"])
@pytest.mark.parametrize("name", [*SEARCHES, "rtn_search", "gptq", "awq_gptq"])
def test_zeros_give_numbers(name, zero):
    _, w, moments = data()
    if zero == "weight":
        w = 0 * w
    else:
        moments = jax.tree.map(jnp.zeros_like, moments)
    choice = choose(name, w, moments, FORMATS["int4"])
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(choice))
    errors = measure(jnp.asarray(w), choice, moments, FORMATS["int4"])
    assert errors.output is not None and not np.asarray(errors.output).any()
    assert float(choice.alpha) == IDENTITY or zero == "weight"


def test_the_two_rtn_methods_choose_alike():
    assert METHODS["rtn"] is METHODS["rtn_dq"]
    assert {name for name, method in METHODS.items() if not method.needs_data} == {"rtn", "rtn_dq", "nvfp4"}


@pytest.mark.parametrize("name", METHODS)
def test_find_method(name):
    assert find_method(name) is METHODS[name]


def test_a_search_without_data_is_refused():
    _, w, _ = data()
    with pytest.raises(JaxqError, match=r"^method 'awq_clip' needs calibration data, and there is none"):
        choose_parts("awq_clip", [(jnp.asarray(w), FORMATS["int4"])], None)


PAIRS = {"int8": IntegerFormat(-1, 8), "nvfp4": Nvfp4Format(), "int4": IntegerFormat(16)}


@pytest.mark.parametrize("name", ["awq_lite", "awq_full"])
@pytest.mark.parametrize("second", PAIRS.values(), ids=PAIRS)
def test_siblings_of_two_formats_share_the_best_scale(second, name):
    """The scale has the least sum of both parts' errors; of equal formats it is that of both side by side."""
    x, w, moments = data()
    parts: list[Part] = [(jnp.asarray(w[:, :4]), IntegerFormat(16)), (jnp.asarray(w[:, 4:]), second)]
    got = choose_parts(name, parts, moments)
    np.testing.assert_array_equal(np.asarray(got[0].s), np.asarray(got[1].s))
    mean = (4 * weight_magnitude(parts[0][0], 16) + 2 * weight_magnitude(parts[1][0], second.block_size)) / 6
    losses = {}
    for alpha in alpha_grid(0.25):
        s = np.asarray(awq_scale(moments.a, mean, alpha), np.float64)[:, None]
        errors = [np.asarray(fmt.round_trip(w * jnp.asarray(s, jnp.float32))) / s - w for w, fmt in parts]
        losses[alpha] = sum(float(((x @ e) ** 2).sum()) for e in errors)
    assert losses[float(got[0].alpha)] <= min(losses.values()) * (1 + 1e-4)
    if second == IntegerFormat(16):
        (whole,) = choose_parts(name, [(jnp.asarray(w), second)], moments)
        assert float(whole.alpha) == float(got[0].alpha)
        np.testing.assert_allclose(np.asarray(whole.s), np.asarray(got[0].s), rtol=1e-6)


@pytest.mark.parametrize("name", ["awq", "", "AWQ_LITE"])
def test_an_unknown_method_is_named_with_the_choices(name):
    with pytest.raises(
        JaxqError, match=f"^method.name is '{name}': choose one of rtn, rtn_dq, nvfp4, awq_lite, awq_cl"
    ):
        find_method(name)


@pytest.mark.parametrize("name", ["rtn_search", "gptq"])
def test_shrinkage_is_that_of_the_moments(name):
    _, w, moments = data()
    fmt = FORMATS["int4"]
    parts: list[Part] = [(jnp.asarray(w), fmt)]
    shrunk_moments = Moments(shrunk(moments.h, moments.tokens, 500.0), moments.a, moments.tokens)
    got, want, plain = (
        methods.choose(METHODS[name], parts, known, MethodSpec(name, fmt, shrinkage=tokens))[0].quantized
        for known, tokens in ((moments, 500.0), (shrunk_moments, 0.0), (moments, 0.0))
    )
    np.testing.assert_array_equal(got.q, want.q)
    np.testing.assert_array_equal(got.s, want.s)
    assert (np.asarray(got.q) != np.asarray(plain.q)).any()
