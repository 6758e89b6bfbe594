"""The maths of AWQ and of packing against recorded numbers of NVIDIA ModelOpt: golden/awq.npz and golden/packing.npz.

Where ModelOpt is wrong, the case gives the reason (`reasons`), and the test says what jaxq does instead.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.formats.integers import IntegerFormat
from jaxq.methods.awq import awq_scale, search_scales, weight_magnitude
from jaxq.methods.grids import alpha_grid, ratio_grid
from jaxq.numerics.integer import quant_tensor
from jaxq.numerics.moments import Moments, accumulate, finish, zero_sums
from jaxq.numerics.packing import pack_int4
from tests.support.golden import case_of, cases, load

AWQ, PACKING = load("awq"), load("packing")


def moments(x: np.ndarray) -> Moments:
    return finish(accumulate(zero_sums(x.shape[1]), jnp.asarray(x), jnp.ones(len(x))))


@pytest.mark.parametrize("case", cases(AWQ, "get_act_scale"))
def test_mean_magnitude_of_activations(case):
    tolerance = 2e-3 if case["x"].dtype == np.float16 else 1e-6  # ModelOpt adds float16 up in float16
    np.testing.assert_allclose(moments(case["x"]).a, case["act_scale"].astype(np.float32), rtol=tolerance)


@pytest.mark.parametrize("case", cases(AWQ, "get_weight_scale"))
def test_weight_magnitude(case):
    w, block_size = case["w"], case["parameters"]["block_size"] or -1
    got = np.asarray(weight_magnitude(jnp.asarray(w), block_size))
    if "strided_blocks" in case["reasons"]:
        blocks = np.abs(w).reshape(-1, block_size, w.shape[1]) if len(w) % block_size == 0 else None
        assert not np.allclose(got, case["weight_scale"], rtol=1e-3)
        if blocks is not None:  # blocks of consecutive rows, as they are quantized
            amax = blocks.max(axis=1, keepdims=True)
            expected = (blocks / np.where(amax > 0, amax, 1)).mean(axis=2).ravel()
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    elif case["parameters"]["block_size"] is not None:
        np.testing.assert_allclose(got, case["weight_scale"], rtol=1e-6)


@pytest.mark.parametrize("case", cases(AWQ, "get_scale"))
def test_scale(case):
    got = awq_scale(
        jnp.asarray(case["act_scale"]), jnp.asarray(case["weight_scale"]), float(case["parameters"]["alpha"])
    )
    np.testing.assert_allclose(got, case["scale"], rtol=2e-6)


@pytest.mark.parametrize("case", cases(AWQ, "run_awq_scale_search_per_node"))
def test_search_per_node(case):
    """Losses from second moments are ModelOpt's losses from tokens; codes at its best scale are its codes."""
    if case["parameters"]["clip"]:
        pytest.skip("ModelOpt's clip search multiplies scaled weights with unscaled activations")
    block_size, asymmetric = case["parameters"]["block_size"], case["parameters"]["use_zero_point"]
    w = jnp.asarray(case["w"])
    fmt = IntegerFormat(block_size, use_zero_point=asymmetric)
    if "strided_blocks" not in case["reasons"] and not asymmetric:
        choice = search_scales(w, moments(case["x"]), jnp.array(case["candidates"], jnp.float32), fmt)
        losses = np.asarray(choice.losses) / w.shape[1]  # ModelOpt's are means over columns too
        np.testing.assert_allclose(losses, case["losses"], rtol=1e-3)
        assert case["candidates"][int(choice.best)] == pytest.approx(case["best_alpha"])
        np.testing.assert_allclose(choice.s, case["best_scale"], rtol=1e-5)
    if not asymmetric:
        q, s, _ = quant_tensor(w * jnp.asarray(case["best_scale"], jnp.float32)[:, None], block_size)
        np.testing.assert_array_equal(q, case["codes"])
        np.testing.assert_allclose(s, case["s"], rtol=2e-7)


def test_candidates():
    helpers = case_of(AWQ, "helpers")
    np.testing.assert_allclose(alpha_grid(0.1)[1:], helpers["lite_candidates"], atol=1e-6)
    np.testing.assert_allclose(sorted(ratio_grid(0.5, 0.05)), helpers["clip_candidates"], atol=1e-6)
    # ModelOpt accepts awqlite_alpha_step and ignores it; and a tie takes its least ratio, jaxq's takes 1
    assert len(alpha_grid(0.25)) == 6
    assert len(helpers["lite_candidates"]) == 11
    assert np.all(helpers["clip_tie"] == 0.5)


@pytest.mark.parametrize("case", cases(PACKING, "pack_float32_to_4bit_optimized"))
def test_packing(case):
    low, high = (-8, 7) if case["parameters"]["signed"] else (0, 15)
    codes = np.rint(np.clip(case["input"].astype(np.float32), low, high)).astype(np.int8)
    np.testing.assert_array_equal(pack_int4(jnp.asarray(codes)), case["packed"])


@pytest.mark.parametrize("case", cases(PACKING, "pack_weights_to_int4"))
def test_packing_of_weights(case):
    codes = np.rint(np.clip(case["input"].astype(np.float32), -8, 7)).astype(np.int8)
    got = np.asarray(pack_int4(jnp.asarray(codes)))
    np.testing.assert_array_equal(got, np.asarray(case["packed"]).ravel().astype(np.uint8))
