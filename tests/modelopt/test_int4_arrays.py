"""jaxq.int4 on arrays: the shorter and the fuller calls, AWQ's scales, and the helper classes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq import int4, quant_utils
from jaxq.errors import JaxqError
from jaxq.methods.grids import IDENTITY


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize(("axis", "zero"), [(0, False), (0, True), (1, True)])
def test_the_fuller_call_is_quant_utils(axis: int, zero: bool, convert: Any) -> None:
    w = convert(weight(16, 24))
    q, s, zp = quant_utils.quant_tensor(w, 8, axis, 0.5, zero, 3)
    pairs: list[tuple[Any, Any]] = [
        (int4.find_scales(w, 8, axis, 0.5, zero, 3), (s, zp)),
        (int4.find_scales(w, 8, alpha=0.5, use_zero_point=zero, quantize_axis=axis, num_bits=3), (s, zp)),
        (int4.quant_tensor(w, 8, np.int64(axis), 0.5, zero, 3), (q, s, zp)),
        ((int4.rtn(w, s, 8, axis, zp, 3),), (q,)),
        ((int4.dq_tensor(q, s, 8, axis, zp),), (quant_utils.dq_tensor(q, s, 8, axis, zp),)),
    ]
    for got, want in pairs:
        for mine, theirs in zip(got, want, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    "alpha", [0.5, np.float32(0.5), np.full((2, 24), 0.5, np.float32)], ids=["float", "0-d", "2-d"]
)
def test_the_shorter_call_of_the_page_works(alpha: Any, zero: bool, convert: Any) -> None:
    w = convert(weight(16, 24))
    q, s, zp = quant_utils.quant_tensor(w, 8, 0, 0.5, zero)
    pairs: list[tuple[Any, Any]] = [
        (int4.find_scales(w, 8, alpha, zero), (s, zp)),
        (int4.find_scales(w, 8, alpha, use_zero_point=zero), (s, zp)),
        (int4.quant_tensor(w, 8, alpha, zero), (q, s, zp)),
        ((int4.rtn(w, s, 8, zp),), (q,)),
        ((int4.dq_tensor(q, s, 8, zp),), (quant_utils.dq_tensor(q, s, 8, 0, zp),)),
    ]
    for got, want in pairs:
        for mine, theirs in zip(got, want, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("true", [True, np.True_])
def test_a_bool_in_fourth_place_is_the_zero_point(true: Any) -> None:
    w = weight(16, 24)
    for alpha in (1, 1.0, 0.5):
        q, s, zp = quant_utils.quant_tensor(w, 8, 0, alpha, True)
        for got in (int4.find_scales(w, 8, alpha, true), int4.quant_tensor(w, 8, alpha, true)[1:]):
            np.testing.assert_array_equal(got[0], s)
            np.testing.assert_array_equal(got[1], zp)
        np.testing.assert_array_equal(int4.quant_tensor(w, 8, alpha, true)[0], q)
        assert int4.find_scales(w, 8, alpha, np.False_)[1] is None
    assert int4.find_scales(w, 8, 1)[0].shape == (16, 3)  # a lone integer is an axis


@pytest.mark.parametrize("call", [int4.find_scales, int4.quant_tensor])
@pytest.mark.parametrize(
    ("arguments", "named", "text"),
    [
        ((0.5,), {"alpha": 0.9}, "0.9 follows the alpha 0.5"),
        ((0.5, 1), {}, "1 follows the alpha 0.5"),
        ((0.5, "x"), {}, "'x' follows the alpha 0.5"),
        ((0.5, True, True), {}, "use_zero_point is given twice"),
        ((True,), {}, "alpha is True"),
        ((0, True), {}, "alpha is 0"),
    ],
)
def test_what_follows_an_alpha(call: Any, arguments: Any, named: Any, text: str) -> None:
    with pytest.raises(JaxqError, match=text):
        call(weight(16, 24), 8, *arguments, **named)


def test_none_in_fourth_place_keeps_the_zero_points() -> None:
    w = weight(16, 24)
    q, s, zp = quant_utils.quant_tensor(w, 8, use_zero_point=True)
    np.testing.assert_array_equal(int4.rtn(w, s, 8, None, zp), q)
    np.testing.assert_array_equal(int4.dq_tensor(q, s, 8, None, zp), int4.dq_tensor(q, s, 8, zp))
    for call in (int4.rtn, int4.dq_tensor):
        with pytest.raises(JaxqError, match="zero points are given twice"):
            call(w, s, 8, zp, zp)


def test_lists_are_arrays() -> None:
    w, x = weight(8, 3), weight(5, 8)
    lists: list[Any] = [[4.0, 1.0], [0.5, 0.5]]
    pairs: list[tuple[Any, Any]] = [
        (int4.get_act_scale(x.tolist()), int4.get_act_scale(x)),
        (int4.get_weight_scale(w.tolist(), 4), int4.get_weight_scale(w, 4)),
        (int4.get_scale(*lists, alpha=0.5), int4.get_scale(*map(np.asarray, lists), alpha=0.5)),
        (int4.AWQLiteHelper(x.tolist(), w.tolist(), 4).weight_scale, int4.AWQLiteHelper(x, w, 4).weight_scale),
        (int4.AWQClipHelper(w.tolist(), 4).w_amax, int4.AWQClipHelper(w, 4).w_amax),
    ]
    for mine, theirs in pairs:
        assert isinstance(mine, np.ndarray)
        np.testing.assert_array_equal(mine, theirs)


def test_act_scale() -> None:
    x = weight(2, 5, 3)
    want = np.abs(x).mean(axis=(0, 1))
    np.testing.assert_allclose(int4.get_act_scale(x), want, rtol=1e-6)
    np.testing.assert_allclose(int4.get_act_scale(x.reshape(10, 3)), want, rtol=1e-6)
    half = int4.get_act_scale(np.full((70000, 1), 60000, np.float16))
    assert half.dtype == np.float32 and half[0] == 60000
    with pytest.raises(JaxqError, match="single number"):
        int4.get_act_scale(np.array(1.0))


def test_weight_scale_takes_consecutive_rows() -> None:
    w = np.abs(weight(20, 3))
    want = [(b / b.max(axis=0)).mean(axis=1) for b in (w[:8], w[8:16], w[16:])]
    np.testing.assert_allclose(int4.get_weight_scale(w, 8), np.concatenate(want), rtol=1e-6)
    whole = (w / w.max(axis=0)).mean(axis=1)
    for block_size in (None, -1, 20, 99):
        np.testing.assert_allclose(int4.get_weight_scale(w, block_size), whole, rtol=1e-6)
    for wrong in (0, -2):
        with pytest.raises(JaxqError, match="block_size"):
            int4.get_weight_scale(w, wrong)
    with pytest.raises(JaxqError, match="matrix"):
        int4.get_weight_scale(w[0])


def test_scale() -> None:
    a, w_mean = np.abs(weight(6)), np.abs(weight(6, seed=1))
    s = a**0.3 / w_mean**0.7
    want = s / np.sqrt(s.max() * s.min())
    np.testing.assert_allclose(int4.get_scale(a, w_mean, 0.3), want, rtol=1e-5)
    np.testing.assert_allclose(int4.get_scale(a.astype(np.float16), w_mean, np.float64(0.3)), want, rtol=2e-3)
    np.testing.assert_array_equal(int4.get_scale(a, w_mean, IDENTITY), np.ones(6))


def test_lite_helper_has_the_pages_attributes() -> None:
    x, w = weight(9, 8), weight(8, 3, seed=1)
    helper = int4.AWQLiteHelper(x, w, 4)
    assert int4.AWQLiteHelper.alpha_step == helper.alpha_step == 0.1
    assert helper.block_size == 4 and int4.AWQLiteHelper(x, w, -1).block_size == 8
    assert list(helper.loss) == [IDENTITY, *(round(i / 10, 6) for i in range(11))]
    assert set(helper.loss.values()) == {0.0}
    assert helper.best_alpha is None and helper.best_scale is None
    assert helper.act_scale is not None and helper.weight_scale is not None
    np.testing.assert_array_equal(helper.act_scale, int4.get_act_scale(x))
    np.testing.assert_array_equal(helper.weight_scale, int4.get_weight_scale(w, 4))


def test_lite_helper_chooses() -> None:
    x, w = weight(9, 8), weight(8, 3, seed=1)
    helper = int4.AWQLiteHelper(x, w, 4, awqlite_alpha_step=0.5)
    assert list(helper.loss) == [IDENTITY, 0.0, 0.5, 1.0]
    helper.update_best_params()  # all alike: no scaling wins
    assert helper.best_alpha == IDENTITY
    np.testing.assert_array_equal(np.asarray(helper.best_scale), np.ones(8))
    helper.loss = {IDENTITY: 3.0, 0.0: float("nan"), 0.5: 1.0, 1.0: 1.0}
    helper.update_best_params()
    assert helper.best_alpha == 0.5
    assert isinstance(helper.best_scale, np.ndarray)
    assert helper.act_scale is not None and helper.weight_scale is not None
    np.testing.assert_array_equal(helper.best_scale, int4.get_scale(helper.act_scale, helper.weight_scale, 0.5))
    with pytest.raises(JaxqError, match="missing"):
        int4.AWQLiteHelper(None, None, 4).update_best_params()


def test_clip_helper_has_the_pages_attributes() -> None:
    w = weight(10, 3)
    helper = int4.AWQClipHelper(w, 4)
    assert (helper.min_alpha, helper.alpha_step) == (0.5, 0.05)
    assert helper.alphas == list(helper.loss) == [*(round(0.5 + i / 20, 6) for i in range(10)), 1.0]
    blocks = np.stack([np.abs(w[i : i + 4]).max(axis=0) for i in (0, 4, 8)])
    np.testing.assert_array_equal(helper.w_amax, blocks.T.ravel())
    assert all(loss.shape == (3, 3) and not loss.any() for loss in helper.loss.values())
    assert np.isinf(helper.best_loss).all() and (helper.best_alpha == 1).all()
    assert int4.AWQClipHelper(w, -1).w_amax.shape == (3,)
    coarse = int4.AWQClipHelper(w, 4, awqclip_alpha_step=0.1, awqclip_alpha_min=0.7)
    assert coarse.alphas == [0.7, 0.8, 0.9, 1.0]


def test_clip_helper_chooses() -> None:
    w = weight(10, 3)
    helper = int4.AWQClipHelper(w, 4)
    helper.update_best_params()
    assert (helper.best_alpha == 1).all()  # all alike: no clipping
    helper.loss[0.5][1, 2] -= 2
    helper.loss[0.6][1, 2] -= 2
    helper.loss[0.9][0, 0] -= 1
    helper.loss[0.7][2, 2] = np.nan
    helper.update_best_params()
    want = np.ones((3, 3), np.float32)
    want[1, 2], want[0, 0] = 0.6, 0.9
    np.testing.assert_array_equal(helper.best_alpha, want.ravel())
    assert helper.best_loss[5] == -2 and helper.best_loss[0] == -1
    got, _ = int4.find_scales(w, 4, helper.best_alpha)
    whole, _ = int4.find_scales(w, 4)
    np.testing.assert_allclose(got, whole * want.T, rtol=1e-6)


def test_helpers_of_jax_arrays_give_jax_arrays() -> None:
    w = jnp.asarray(weight(8, 3))
    lite, clip = int4.AWQLiteHelper(jnp.ones((2, 8)), w, 4), int4.AWQClipHelper(w, 4)
    lite.update_best_params()
    clip.loss[0.5] = jnp.asarray(clip.loss[0.5]).at[0, 0].add(-1)
    clip.update_best_params()
    for array in (lite.best_scale, clip.w_amax, clip.best_alpha, clip.best_loss):
        assert isinstance(array, type(w))


@pytest.mark.parametrize(
    "make",
    [lambda **k: int4.AWQLiteHelper(None, None, 4, **k), lambda **k: int4.AWQClipHelper(weight(4, 2), 4, **k)],
    ids=["lite", "clip"],
)
def test_options(make: Any) -> None:
    make(awqlite_alpha_step=0.5, awqclip_alpha_step=0.5, awqclip_alpha_min=0.5, awqclip_bsz_col=64)
    with pytest.raises(JaxqError, match=r"alpha_step.*awqlite_alpha_step, awqclip_alpha_step"):
        make(alpha_step=0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: int4.AWQLiteHelper(None, None, 4, awqlite_alpha_step=0),
        lambda: int4.AWQClipHelper(weight(4, 2), 4, awqclip_alpha_step=2),
        lambda: int4.AWQClipHelper(weight(4, 2), 4, awqclip_alpha_min=0),
        lambda: int4.AWQClipHelper(weight(4, 2), 0),
        lambda: int4.AWQLiteHelper(None, weight(4, 2), -3),
        lambda: int4.AWQLiteHelper(None, None, 4, awqlite_alpha_step="x"),
        lambda: int4.AWQClipHelper(weight(4, 2), 4, awqclip_bsz_col=5.5),
        lambda: int4.AWQLiteHelper(weight(3, 5), weight(4, 2), 4),
        lambda: int4.AWQClipHelper(weight(4), 4),
        lambda: int4.AWQClipHelper(weight(4, 2), "4"),  # pyright: ignore[reportArgumentType]
        lambda: int4.get_weight_scale(weight(4, 2), 2.0),  # pyright: ignore[reportArgumentType]
        lambda: int4.get_scale(np.ones(3, np.float32), np.ones(4, np.float32), 0.5),
    ],
)
def test_values_out_of_range(call: Any) -> None:
    with pytest.raises(JaxqError):
        call()


def test_reducing_needs_a_mapped_axis() -> None:
    with pytest.raises(JaxqError, match="'tp'"):
        int4.get_scale(np.ones(3, np.float32), np.ones(3, np.float32), 0.5, reduce_across_tp=True)
