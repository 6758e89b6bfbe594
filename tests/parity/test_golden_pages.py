"""jaxq.quant_utils and jaxq.int4 against NVIDIA ModelOpt: its recorded numbers (golden/*.npz), and live.

Where jaxq differs on purpose, the case says why (`reasons`) and the test says how and in which direction.
test_golden.py and test_golden_searches.py look at the maths below; here are the pages' own functions.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from jaxq import int4, quant_utils
from jaxq.methods.awq import IDENTITY
from jaxq.numerics.packing import unpack_int4

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> list[dict[str, Any]]:
    """The cases of a file, their places in the flat pools replaced by arrays."""
    data = np.load(FOLDER / f"{name}.npz")
    pools = {key: data[key] for key in ("floats", "codes")}

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(each) for each in value]
        if not isinstance(value, dict) or "pool" not in value:
            return value
        flat = pools[value["pool"]][value["offset"] :][: int(np.prod(value["shape"]))]
        return flat.reshape(value["shape"]).astype(value["dtype"])

    return [{key: read(value) for key, value in case.items()} for case in json.loads(str(data["meta"]))["cases"]]


SOURCES = {name: load(name) for name in ("pages", "packing", "awq", "integer")}


def cases(source: str, function: str) -> list[Any]:
    found = [pytest.param(case, id=case["id"]) for case in SOURCES[source] if case.get("function") == function]
    assert found, f"no case of {function}"
    return found


def only(source: str, name: str) -> dict[str, Any]:
    return next(case for case in SOURCES[source] if case["id"] == name)


def assert_close(got: Any, want: np.ndarray, roundings: int = 1) -> None:
    """float32 both, the same shape, and so many roundings apart at most."""
    got = np.asarray(got)
    assert (got.dtype, got.shape) == (np.float32, want.shape)
    far = np.abs(got.astype(np.float64) - want) > roundings * np.spacing(np.abs(want))
    assert not far.any(), f"{far.sum()} of {far.size} numbers are off, such as {got[far][0]} for {want[far][0]}"


@pytest.mark.parametrize("case", cases("pages", "quantize"))
def test_nvfp4(case: dict[str, Any]) -> None:
    """Each function on ModelOpt's own numbers; bfloat16 and float16 weights too."""
    w, block_size, s2 = case["w"], case["parameters"]["block_size"], np.float32(case["s2"])
    assert_close(quant_utils.get_weights_scaling_factor_2(w), np.asarray(s2))
    assert_close(quant_utils.get_weights_scaling_factor(w, block_size, s2), case["s"])
    assert_close(quant_utils.quantize(w, block_size, case["s"], s2), case["scaled"])


@pytest.mark.parametrize("case", cases("pages", "get_amax"))
def test_amax_and_exponents(case: dict[str, Any]) -> None:
    """Equal, but on axis 0, where ModelOpt's blocks are strided rows; there jaxq's fit the exponents' layout."""
    w, axis, block_size = case["w"], case["parameters"]["quant_axis"], case["parameters"]["block_size"]
    amax = quant_utils.get_amax(w, axis, block_size)
    assert amax.dtype == case["amax"].dtype and amax.shape == case["amax"].shape
    if "strided_amax" in case["reasons"]:
        assert axis == 0 and w.ndim == 2
        consecutive = np.abs(w).reshape(-1, block_size, w.shape[1]).max(axis=1).ravel()
        np.testing.assert_array_equal(amax, consecutive)
        strided = np.abs(w).reshape(block_size, -1, w.shape[1]).max(axis=0).ravel()
        np.testing.assert_array_equal(case["amax"], strided)
        assert not np.array_equal(amax, case["amax"])
    else:
        np.testing.assert_array_equal(amax, case["amax"])
    e8m0 = quant_utils.compute_e8m0(amax, w.shape, axis, block_size)
    np.testing.assert_array_equal(e8m0, case["e8m0"])
    assert e8m0.shape == case["e8m0"].shape


def test_amax_differs_on_axis_0_alone() -> None:
    wrong = {case.values[0]["id"] for case in cases("pages", "get_amax") if case.values[0]["reasons"]}
    assert wrong and all("2d-0-8" in name for name in wrong)


@pytest.mark.parametrize("case", cases("pages", "compute_e8m0"))
def test_exponents_at_the_powers_of_two(case: dict[str, Any]) -> None:
    """Just above 448 * 2^k ModelOpt's float32 log2 is k: its exponent is one too small, and the block saturates."""
    amax = case["amax"]
    e8m0 = quant_utils.compute_e8m0(amax, (1, amax.size), 1, 1)
    if not case["reasons"]:
        np.testing.assert_array_equal(e8m0, case["e8m0"])
        return
    apart = np.asarray(e8m0 - case["e8m0"])
    assert set(np.unique(apart)) == {0, 1} and (apart == 1).mean() > 0.5
    assert (amax / 2.0 ** (e8m0[0].astype(np.float64) - 127) <= 448).all()
    assert (amax / 2.0 ** (case["e8m0"][0].astype(np.float64) - 127) > 448)[apart[0] == 1].all()


@pytest.mark.parametrize("case", cases("pages", "quant_tensor"))
def test_bfloat16(case: dict[str, Any]) -> None:
    """jaxq's scales have the weight's type, half a rounding of bfloat16 from ModelOpt's float32 ones."""
    q, s, zp = quant_utils.quant_tensor(case["w"], **case["parameters"])
    assert s.dtype == ml_dtypes.bfloat16 and case["s"].dtype == np.float32
    np.testing.assert_allclose(np.asarray(s, np.float32), case["s"], rtol=2.0**-8)
    codes = quant_utils.rtn(case["w"], case["s"], 16, zp=case["zp"])
    apart = np.abs(np.asarray(codes, np.int32) - case["codes"])
    assert apart.max() <= 1 and apart.mean() < 0.02  # ModelOpt rounds w / s to the nearest even of a float32 quotient
    assert np.abs(np.asarray(q, np.int32) - case["codes"]).max() <= 1
    assert (zp is None) == (case["zp"] is None)


@pytest.mark.parametrize("case", cases("packing", "pack_float32_to_4bit_optimized"))
def test_python_packer(case: dict[str, Any]) -> None:
    packed = quant_utils.pack_float32_to_4bit_optimized(case["input"], case["parameters"]["signed"])
    np.testing.assert_array_equal(packed, case["packed"])


@pytest.mark.parametrize("case", cases("packing", "pack_float32_to_4bit_cpp_based"))
def test_cpp_packer(case: dict[str, Any]) -> None:
    """Equal but for ties: ModelOpt's go away from zero, jaxq's to even, as those of the Python packer."""
    array, signed = case["input"], case["parameters"]["signed"]
    packed = np.asarray(quant_utils.pack_float32_to_4bit_cpp_based(array, signed))
    if "ties_away" not in case["reasons"]:
        np.testing.assert_array_equal(packed, case["packed"])
        return
    mine, theirs = (
        np.asarray(unpack_int4(jnp.asarray(b), array.shape, signed)).astype(int) for b in (packed, case["packed"])
    )
    low, high = (-8, 7) if signed else (0, 15)
    held = np.clip(array.astype(np.float64), low, high)
    ties = held % 1 == 0.5
    np.testing.assert_array_equal(mine[~ties], theirs[~ties])
    np.testing.assert_array_equal(theirs[ties], (np.sign(held) * np.floor(np.abs(held) + 0.5))[ties])
    assert (mine[ties] % 2 == 0).all() and (np.abs(mine) <= np.abs(theirs)).all() and (mine != theirs).any()


@pytest.mark.parametrize("case", cases("packing", "pack_weights_to_int4"))
def test_weight_packer(case: dict[str, Any]) -> None:
    packed = quant_utils.pack_weights_to_int4(case["input"])
    assert packed.dtype == case["packed"].dtype
    np.testing.assert_array_equal(packed, case["packed"])


def positional_cases() -> list[dict[str, Any]]:
    """One block size of each weight, and all widths; test_golden.py says how the cases left out here differ."""
    other = {"overflow", "half_division", "int8_wrap"}
    found = [c for c in SOURCES["integer"] if "parameters" in c and not other & set(c["reasons"])]
    return [c for c in found if c["parameters"]["block_size"] == 16 and c["parameters"]["num_bits"] != 8]


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
    case = only("integer", "alpha_per_block")
    s, _ = int4.find_scales(case["w"], 16, case["alpha"].T.ravel())
    assert_close(s, case["s"])


def test_helpers() -> None:
    case = only("awq", "helpers")
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


@pytest.mark.parametrize("case", cases("awq", "get_act_scale"))
def test_act_scale(case: dict[str, Any]) -> None:
    """ModelOpt's is of the activation's type, jaxq's always float32."""
    tolerance = 2e-3 if case["x"].dtype == np.float16 else 1e-6
    got = int4.get_act_scale(case["x"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, case["act_scale"].astype(np.float32), rtol=tolerance)


def blocks_of(w: np.ndarray, block_size: int | None) -> list[np.ndarray]:
    """Consecutive rows, the last block ragged, in float64."""
    size = len(w) if block_size in (None, -1) else block_size
    return [w[i : i + size].astype(np.float64) for i in range(0, len(w), size)]


def weight_scale(w: np.ndarray, block_size: int | None) -> np.ndarray:
    """Mean over columns of ``|w| / max|block|``."""
    blocks = [np.abs(block) for block in blocks_of(w, block_size)]
    return np.concatenate([(b / np.where(b.max(axis=0) > 0, b.max(axis=0), 1)).mean(axis=1) for b in blocks])


@pytest.mark.parametrize("case", cases("awq", "get_weight_scale"))
def test_weight_scale(case: dict[str, Any]) -> None:
    block_size = case["parameters"]["block_size"]
    got = int4.get_weight_scale(case["w"], block_size)
    np.testing.assert_allclose(got, weight_scale(case["w"], block_size), rtol=1e-6)
    if "strided_blocks" in case["reasons"]:
        assert not np.allclose(got, case["weight_scale"], rtol=1e-3)
    else:
        np.testing.assert_allclose(got, case["weight_scale"], rtol=1e-6)


@pytest.mark.parametrize("case", cases("awq", "get_scale"))
def test_scale(case: dict[str, Any]) -> None:
    got = int4.get_scale(case["act_scale"], case["weight_scale"], case["parameters"]["alpha"])
    np.testing.assert_allclose(got, case["scale"], rtol=2e-6)


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
    parts = []
    for block in blocks_of(w * s[:, None], block_size):
        lo, hi = np.minimum(block.min(axis=0), 0), np.maximum(block.max(axis=0), 0)
        step = (hi - lo) / 15 if zero else np.abs(block).max(axis=0) / 7
        zp = np.round(-lo / step) if zero else 0
        low, high = (0, 15) if zero else (-8, 7)
        parts.append((np.clip(np.round(block / step) + zp, low, high) - zp) * step)
    return float(np.mean((x @ w - (x / s) @ np.concatenate(parts)) ** 2))


@pytest.mark.parametrize("case", cases("awq", "run_awq_scale_search_per_node"))
def test_search_per_node(case: dict[str, Any]) -> None:
    """ModelOpt's losses and choice where its blocks are consecutive rows; never a greater error than its choice's."""
    w, p = case["w"], case["parameters"]
    found, clips = int4.run_awq_scale_search_per_node(
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
    losses = list(found[0].loss.values())
    np.testing.assert_allclose(losses, [numpy_error(case, alpha) for alpha in found[0].loss], rtol=5e-3)
    if "strided_blocks" not in case["reasons"] and not p["use_zero_point"]:
        np.testing.assert_allclose(losses[1:], case["losses"], rtol=1e-3)
        assert found[0].best_alpha == pytest.approx(case["best_alpha"])
        np.testing.assert_allclose(found[0].best_scale, case["best_scale"], rtol=1e-5)
    rtn_error = output_error(case, w, np.ones(len(w)))
    assert losses[0] == pytest.approx(rtn_error, rel=2e-3)
    assert found[0].loss[found[0].best_alpha] <= rtn_error * (1 + 2e-3)
    if p["clip"]:
        mine, theirs = clips["w"], case["clip_alphas"]
        assert mine.shape == theirs.shape
        s = found[0].best_scale
        # ModelOpt's ratios are the best ones for unscaled activations
        assert (
            output_error(case, w, s, mine) <= min(output_error(case, w, s, theirs), output_error(case, w, s)) * 1.0001
        )


@pytest.mark.parametrize("case", cases("awq", "run_awq_scale_search_per_subgraph"))
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
    found = int4.run_awq_scale_search_per_subgraph(packs, "", block_size, False, session, places, [{}], "")
    np.testing.assert_array_equal(found[0].best_scale, found[1].best_scale)
    w = np.concatenate(case["ws"], axis=1)
    assert output_error(case, w, found[0].best_scale) <= output_error(case, w, case["best_scale"]) * 1.01
    assert output_error(case, w, found[0].best_scale) <= output_error(case, w, np.ones(len(w))) * 1.0001
    if not case["reasons"]:
        assert found[0].best_alpha == pytest.approx(case["best_alpha"])
        np.testing.assert_allclose(found[0].best_scale, case["best_scale"], rtol=2e-3)  # ModelOpt damps by 1e-4


@pytest.mark.parametrize("shape", [(48, 32), (3, 16, 32)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_live_amax(shape: tuple[int, ...], dtype: Any) -> None:
    """Fresh weights through both libraries, on the axes where ModelOpt's blocks are consecutive."""
    modelopt = pytest.importorskip("modelopt.onnx.quantization.quant_utils")
    w = (np.random.default_rng(5).normal(size=shape) * 100).astype(dtype)
    for axis in (1, -1):
        for block_size in (4, 16):
            amax = quant_utils.get_amax(w, axis, block_size)
            np.testing.assert_array_equal(amax, modelopt.get_amax(w, axis, block_size))
            exact = np.asarray(amax, np.float32)
            got = quant_utils.compute_e8m0(exact, shape, axis, block_size)
            np.testing.assert_array_equal(got, modelopt.compute_e8m0(exact, shape, axis, block_size))


@pytest.mark.parametrize("factor", [1, 1e-20, 1e30])
def test_live_nvfp4(factor: float) -> None:
    modelopt = pytest.importorskip("modelopt.onnx.quantization.quant_utils")
    w = (np.random.default_rng(6).normal(size=(7, 96)) * factor).astype(np.float32)
    s2 = modelopt.get_weights_scaling_factor_2(w)
    assert_close(quant_utils.get_weights_scaling_factor_2(w), np.asarray(s2))
    for block_size in (8, 16, 96):
        s = modelopt.get_weights_scaling_factor(w, block_size, s2)
        assert_close(quant_utils.get_weights_scaling_factor(w, block_size, s2), s)
        assert_close(quant_utils.quantize(w, block_size, s, s2), modelopt.quantize(w, block_size, s, s2))


def test_live_packers_and_maps() -> None:
    modelopt = pytest.importorskip("modelopt.onnx.quantization.quant_utils")
    theirs = pytest.importorskip("modelopt.onnx.quantization.int4")
    array = np.random.default_rng(7).normal(size=(6, 11)) * 8
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8):
        given = array.astype(dtype)
        for signed in (True, False):
            want = modelopt.pack_float32_to_4bit_optimized(given, signed)
            np.testing.assert_array_equal(quant_utils.pack_float32_to_4bit_optimized(given, signed), want)
        np.testing.assert_array_equal(quant_utils.pack_weights_to_int4(given), modelopt.pack_weights_to_int4(given))
    info = {"a": {"precision": 8, "block_size": -1, "axis": 0}}
    scales = {"a": np.ones((1, 3), np.float32), "b": np.ones((2, 3), np.float32)}
    got = quant_utils.reshape_scales_for_per_channel_nodes(scales, 16, info)
    want = modelopt.reshape_scales_for_per_channel_nodes(dict(scales), 16, info)
    assert {name: s.shape for name, s in got.items()} == {name: s.shape for name, s in want.items()}
    for name in ("a", "b", None):
        assert quant_utils.get_num_bits(info, name) == modelopt.get_num_bits(info, name)
    packs = [pack(np.ones((4, 2), np.float32), "w0"), pack(np.ones((4, 3), np.float32), "w1")]
    mine, other = (m.get_act_to_weight_map_and_act_to_wa_pack_map(packs) for m in (int4, theirs))
    assert mine[0] == other[0]
    assert {k: [tuple(d) for d in v] for k, v in other[1].items()} == mine[1]
