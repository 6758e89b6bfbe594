"""jaxq.int4 on arrays against recorded numbers of NVIDIA ModelOpt: short calls, magnitudes, scales and helpers.

Where jaxq differs on purpose, the case gives the reason (`reasons`), and the test says how the results differ.
"""

from typing import Any

import numpy as np
import pytest

from jaxq import int4
from jaxq.methods.grids import IDENTITY
from tests.support.golden import assert_close, case_of, cases, load
from tests.support.weight_magnitudes import weight_scale

AWQ, INTEGER = load("awq"), load("integer")


def positional_cases() -> list[dict[str, Any]]:
    """One block size of each weight, and all widths; test_golden_integer.py says how the other cases differ."""
    different = {"overflow", "half_division", "int8_wrap"}
    equal = [c for c in INTEGER if "parameters" in c and not different & set(c["reasons"])]
    return [c for c in equal if c["parameters"]["block_size"] == 16 and c["parameters"]["num_bits"] != 8]


@pytest.mark.parametrize("case", positional_cases(), ids=lambda case: case["id"])
def test_positional_calls_of_int4(case: dict[str, Any]) -> None:
    """The short signatures on ModelOpt's scales and codes, as its own int4 module calls them."""
    p = case["parameters"]
    axis = p["quantize_axis"]
    more: tuple[Any, ...] = (axis, case["zp"]) if axis else (case["zp"],)  # the short form has no axis
    codes = int4.rtn(case["w"], case["s"], p["block_size"], *more, num_bits=p["num_bits"])
    np.testing.assert_array_equal(codes, case["codes"].astype(codes.dtype))
    if case["dq"] is not None:
        dq = int4.dq_tensor(case["codes"], case["s"], p["block_size"], *more)
        np.testing.assert_array_equal(dq, case["dq"])


def test_flat_alpha() -> None:
    """One alpha a block, flat and column by column, as ModelOpt's AWQClipHelper hands it over."""
    case = case_of(INTEGER, "alpha_per_block")
    s, _ = int4.find_scales(case["w"], 16, case["alpha"].T.ravel())
    assert_close(s, case["s"])


def test_helpers() -> None:
    case = case_of(AWQ, "helpers")
    x, w = np.ones((2, 48), np.float32), np.random.default_rng(2).normal(size=(48, 5)).astype(np.float32)
    lite, clip = int4.AWQLiteHelper(x, w, 16), int4.AWQClipHelper(w, 16)
    identity, *alphas = lite.loss
    assert identity == IDENTITY  # ModelOpt has no candidate for "no scaling"
    np.testing.assert_allclose(alphas, case["lite_candidates"], atol=1e-6)
    assert list(int4.AWQLiteHelper(x, w, 16, awqlite_alpha_step=0.25).loss)[1:] == [0, 0.25, 0.5, 0.75, 1]
    assert case["lite_alpha_step"] == 0.25 and len(case["lite_candidates"]) == 11  # ModelOpt's step has no effect
    assert clip.alphas == case["clip_candidates"]
    coarse = int4.AWQClipHelper(w, 16, awqclip_alpha_step=0.1, awqclip_alpha_min=0.7)
    assert coarse.alphas == case["clip_candidates_coarse"][:-1]  # ModelOpt has 1.0 twice there
    clip.update_best_params()
    assert clip.best_alpha.shape == case["clip_tie"].shape
    assert (clip.best_alpha == 1).all() and (case["clip_tie"] == 0.5).all()  # a tie: jaxq's is no clipping
    assert case["clip_per_channel_raises"] and int4.AWQClipHelper(w, -1).w_amax.shape == (5,)


@pytest.mark.parametrize("case", cases(AWQ, "get_act_scale"))
def test_act_scale(case: dict[str, Any]) -> None:
    """ModelOpt's is of the activation's type, jaxq's always float32."""
    tolerance = 2e-3 if case["x"].dtype == np.float16 else 1e-6
    got = int4.get_act_scale(case["x"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, case["act_scale"].astype(np.float32), rtol=tolerance)


@pytest.mark.parametrize("case", cases(AWQ, "get_weight_scale"))
def test_weight_scale(case: dict[str, Any]) -> None:
    block_size = case["parameters"]["block_size"]
    got = int4.get_weight_scale(case["w"], block_size)
    np.testing.assert_allclose(got, weight_scale(case["w"], block_size), rtol=1e-6)
    if "strided_blocks" in case["reasons"]:
        assert not np.allclose(got, case["weight_scale"], rtol=1e-3)
    else:
        np.testing.assert_allclose(got, case["weight_scale"], rtol=1e-6)


@pytest.mark.parametrize("case", cases(AWQ, "get_scale"))
def test_scale(case: dict[str, Any]) -> None:
    got = int4.get_scale(case["act_scale"], case["weight_scale"], case["parameters"]["alpha"])
    np.testing.assert_allclose(got, case["scale"], rtol=2e-6)
