"""jaxq.int4's searches over wa_packs against recorded numbers of NVIDIA ModelOpt, and against numpy in float64.

Where jaxq differs on purpose, the case gives the reason (`reasons`), and the test says how the results differ.
"""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from jaxq import int4
from jaxq.methods.grids import IDENTITY
from tests.support.golden import cases, load
from tests.support.weight_magnitudes import blocks_of, weight_scale

AWQ = load("awq")


def pack(w: np.ndarray, name: str) -> Any:
    return TensorProto(name="x"), numpy_helper.from_array(w, name), False, 1, f"/{name}"


def output_error(case: dict[str, Any], w: np.ndarray, s: Any, clip: Any = 1.0) -> float:
    """Mean squared error per output element of the quantized layer, in float64."""
    block_size, zero = case["parameters"]["block_size"], case["parameters"].get("use_zero_point", False)
    s = np.asarray(s, np.float32)
    q, scale, zp = int4.quant_tensor(w * s[:, None], block_size, clip, zero)
    dq = np.asarray(int4.dq_tensor(q, scale, block_size, zp), np.float64)
    x = case["x"].astype(np.float64)
    return float(np.mean((x @ w - (x / s) @ dq) ** 2))


def numpy_error(case: dict[str, Any], alpha: float) -> float:
    """`output_error` at AWQ's scale for alpha, all of it by numpy's formulas."""
    x, w = (case[name].astype(np.float64) for name in ("x", "w"))
    block_size, zero = case["parameters"]["block_size"], case["parameters"]["use_zero_point"]
    s = np.abs(x).mean(axis=0) ** alpha / weight_scale(w, block_size) ** (1 - alpha)
    s = s / np.sqrt(s.max() * s.min()) if alpha != IDENTITY else np.ones(len(w))
    blocks = []
    for block in blocks_of(w * s[:, None], block_size):
        lo, hi = np.minimum(block.min(axis=0), 0), np.maximum(block.max(axis=0), 0)
        step = (hi - lo) / 15 if zero else np.abs(block).max(axis=0) / 7
        zp = np.round(-lo / step) if zero else 0
        low, high = (0, 15) if zero else (-8, 7)
        blocks.append((np.clip(np.round(block / step) + zp, low, high) - zp) * step)
    return float(np.mean((x @ w - (x / s) @ np.concatenate(blocks)) ** 2))


@pytest.mark.parametrize("case", cases(AWQ, "run_awq_scale_search_per_node"))
def test_search_per_node(case: dict[str, Any]) -> None:
    """ModelOpt's losses and choice where its blocks are consecutive rows; never a greater error than its choice's."""
    w, p = case["w"], case["parameters"]
    helpers, clips = int4.run_awq_scale_search_per_node(
        [pack(w, "w")],
        "",
        p["block_size"],
        p["use_zero_point"],
        None,
        [None],
        [],
        "",
        p["clip"],
        True,
        [[case["x"]]],
        {},
    )
    losses = list(helpers[0].loss.values())
    np.testing.assert_allclose(losses, [numpy_error(case, alpha) for alpha in helpers[0].loss], rtol=5e-3)
    if "strided_blocks" not in case["reasons"] and not p["use_zero_point"]:
        np.testing.assert_allclose(losses[1:], case["losses"], rtol=1e-3)
        assert helpers[0].best_alpha == pytest.approx(case["best_alpha"])
        np.testing.assert_allclose(helpers[0].best_scale, case["best_scale"], rtol=1e-5)
    rtn_error = output_error(case, w, np.ones(len(w)))
    assert losses[0] == pytest.approx(rtn_error, rel=2e-3)
    assert helpers[0].loss[helpers[0].best_alpha] <= rtn_error * (1 + 2e-3)
    if p["clip"]:
        mine, theirs = clips["w"], case["clip_alphas"]
        assert mine.shape == theirs.shape
        s = helpers[0].best_scale
        # ModelOpt searches its ratios with unscaled activations.
        least_error = min(output_error(case, w, s, theirs), output_error(case, w, s))
        assert output_error(case, w, s, mine) <= least_error * 1.0001


@pytest.mark.parametrize("case", cases(AWQ, "run_awq_scale_search_per_subgraph"))
def test_search_per_subgraph(case: dict[str, Any]) -> None:
    packs = [pack(w, f"w{i}") for i, w in enumerate(case["ws"])]
    block_size = case["parameters"]["block_size"]
    x_mean, w_mean = int4.get_x_w_mean_for_subgraph(packs, [0, 1], "", case["x"], block_size)
    np.testing.assert_allclose(x_mean, case["x_mean"], rtol=1e-6)
    np.testing.assert_allclose(w_mean, weight_scale(np.concatenate(case["ws"], axis=1), block_size), rtol=1e-6)
    if "strided_blocks" in case["reasons"]:
        assert not np.allclose(w_mean, case["w_mean"], rtol=1e-3)
    else:
        np.testing.assert_allclose(w_mean, case["w_mean"], rtol=5e-5)  # ModelOpt adds 1e-6 to each block's maximum
    session: Any = type("Session", (), {"run": lambda self, names, feeds: [case["x"] for _ in names]})()
    places: list[Any] = [None, None]
    helpers = int4.run_awq_scale_search_per_subgraph(packs, "", block_size, False, session, places, [{}], "")
    np.testing.assert_array_equal(helpers[0].best_scale, helpers[1].best_scale)
    w = np.concatenate(case["ws"], axis=1)
    assert output_error(case, w, helpers[0].best_scale) <= output_error(case, w, case["best_scale"]) * 1.01
    assert output_error(case, w, helpers[0].best_scale) <= output_error(case, w, np.ones(len(w))) * 1.0001
    if not case["reasons"]:
        assert helpers[0].best_alpha == pytest.approx(case["best_alpha"])
        np.testing.assert_allclose(helpers[0].best_scale, case["best_scale"], rtol=2e-3)  # ModelOpt damps by 1e-4
