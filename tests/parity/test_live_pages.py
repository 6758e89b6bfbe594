"""jaxq.quant_utils and jaxq.int4 against an installed NVIDIA ModelOpt, on fresh arrays; skipped without it."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from jaxq import int4, quant_utils
from tests.support.golden import assert_close


def pack(w: np.ndarray, name: str) -> Any:
    return TensorProto(name="x"), numpy_helper.from_array(w, name), False, 1, f"/{name}"


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


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, ml_dtypes.int4])
def test_live_arrays_of_integers(dtype: Any) -> None:
    """ModelOpt's scales are float64 there, and jaxq's the same numbers in float32."""
    modelopt = pytest.importorskip("modelopt.onnx.quantization.quant_utils")
    theirs = pytest.importorskip("modelopt.onnx.quantization.int4")
    w = np.random.default_rng(8).integers(0 if dtype == np.uint8 else -7, 8, (48, 32)).astype(dtype)
    calls: Any = ((16,), (16, 1), (48, 0, 0.7), (16, 0, 1.0, False, 8))
    for arguments in calls:
        s = modelopt.find_scales(w, *arguments)[0].astype(np.float32)
        assert_close(quant_utils.find_scales(w, *arguments)[0], s)
        blocks = arguments[:2]
        # ModelOpt divides int32 and int64 in float64, where a tie of float32 is none.
        codes = modelopt.rtn(w.astype(np.float32), s, *blocks)
        np.testing.assert_array_equal(quant_utils.rtn(w, s, *blocks), codes)
        assert_close(quant_utils.dq_tensor(w, s, *blocks), modelopt.dq_tensor(w, s, *blocks).astype(np.float32))
    s, zp = quant_utils.find_scales(w, 16, use_zero_point=True)
    their_s, their_zp = modelopt.find_scales(w, 16, use_zero_point=True)
    if dtype != np.uint8:  # jaxq's range always includes zero
        assert_close(s, their_s.astype(np.float32))
        np.testing.assert_array_equal(zp, their_zp)
    np.testing.assert_array_equal(quant_utils.get_amax(w, 1, 16), modelopt.get_amax(w, 1, 16))
    assert_close(quant_utils.get_weights_scaling_factor_2(w), np.asarray(modelopt.get_weights_scaling_factor_2(w)))
    ratio = np.float32(0.5)
    want = modelopt.get_weights_scaling_factor(w, 16, ratio)
    assert_close(quant_utils.get_weights_scaling_factor(w, 16, ratio), want)
    assert_close(quant_utils.quantize(w, 16, want, ratio), modelopt.quantize(w, 16, want, ratio).astype(np.float32))
    if dtype != ml_dtypes.int4:
        assert_close(int4.get_act_scale(w), theirs.get_act_scale(w).astype(np.float32))


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
