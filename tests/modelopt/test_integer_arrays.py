"""Arrays of integers in the functions of both pages: the results are those of the same numbers as floats."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxq import int4, quant_utils
from jaxq.errors import JaxqError

TYPES = [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, ml_dtypes.int4]


def weight(dtype: Any) -> np.ndarray:
    """[24, 4] with the least and the greatest number of the type, where they are exact in float32."""
    info = ml_dtypes.iinfo(dtype)
    low, high = max(int(info.min), -(2**20)), min(int(info.max), 2**20)
    w = np.random.default_rng(3).integers(low, high + 1, (24, 4))
    w[0, 0], w[1, 1] = low, high
    return w.astype(dtype)


@pytest.mark.parametrize("page", [quant_utils, int4], ids=["quant_utils", "int4"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("block_size", [10, -1])
def test_scales_and_codes(page: Any, dtype: Any, block_size: int) -> None:
    """Against numpy in float64, with a ragged last block."""
    w = weight(dtype)
    exact = w.astype(np.float64)
    rows = np.minimum(np.arange(24) // (24 if block_size == -1 else block_size), 2)
    blocks = [exact[rows == i] for i in range(rows[-1] + 1)]
    s, zp = page.find_scales(w, block_size)
    want = np.array([np.abs(block).max(axis=0) for block in blocks]) / 7
    assert (s.dtype, zp) == (np.float32, None)
    np.testing.assert_allclose(s, np.where(want == 0, 1, want), rtol=1e-6)
    codes, scales, _ = page.quant_tensor(w, block_size)
    np.testing.assert_array_equal(scales, s)
    # As float32, the products above lie less than one part in a million beside the ones of float64.
    quotient = exact / s.astype(np.float64)[rows]
    np.testing.assert_array_less(np.abs(codes - quotient), 0.5 + 1e-5)
    np.testing.assert_array_equal(page.rtn(w, s, block_size), codes)
    np.testing.assert_allclose(page.dq_tensor(codes, s, block_size), codes * s[rows], rtol=1e-6)
    s, zp = page.find_scales(w, block_size, use_zero_point=True)
    lows, highs = (np.array([f(block, axis=0) for block in blocks]) for f in (np.min, np.max))
    want = (np.maximum(highs, 0) - np.minimum(lows, 0)) / 15
    np.testing.assert_allclose(s, want, rtol=1e-6)
    np.testing.assert_array_less(np.abs(zp + np.minimum(lows, 0) / want), 0.5 + 1e-5)


CALLS: dict[str, Callable[[Any], Any]] = {
    "get_amax": lambda w: quant_utils.get_amax(w, 0, 10),
    "get_weights_scaling_factor_2": quant_utils.get_weights_scaling_factor_2,
    "get_weights_scaling_factor": lambda w: quant_utils.get_weights_scaling_factor(w, 2, 0.5),
    "quantize": lambda w: quant_utils.quantize(w, 2, np.full((24, 2), 2, np.int32), 1),
    "get_act_scale": int4.get_act_scale,
    "get_weight_scale": lambda w: int4.get_weight_scale(w, 10),
    "get_scale": lambda w: int4.get_scale(abs(w.astype(np.int32)[0]) + 1, w.astype(np.int32)[1] ** 2 + 1, 0.5),
    "AWQLiteHelper": lambda w: (int4.AWQLiteHelper(w.T, w, 10).weight_scale, int4.AWQLiteHelper(w.T, w, 10).act_scale),
    "AWQClipHelper": lambda w: int4.AWQClipHelper(w, 10).w_amax,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", TYPES)
def test_other_functions(name: str, dtype: Any) -> None:
    """`test_quant_utils` and `test_int4_arrays` hold their results on floats to numpy."""
    w = weight(dtype)
    want = CALLS[name](w.astype(np.float32))
    np.testing.assert_array_equal(CALLS[name](w), want)
    np.testing.assert_array_equal(CALLS[name](jnp.asarray(w)), want)


def test_greatest_magnitude_of_the_least_int8() -> None:
    """-128 has the magnitude 128, which int8 cannot hold."""
    w = np.array([[-128], [5]], np.int8)
    assert quant_utils.get_amax(w, 0, 2).tolist() == [128.0]
    assert int4.get_act_scale(w.T).tolist() == [128.0, 5.0]
    assert int4.AWQClipHelper(w, 2).w_amax.tolist() == [128.0]
    assert quant_utils.compute_e8m0(np.array([448], np.int32), (1, 1), 1, 1).tolist() == [[127.0]]


def test_scales_of_integers() -> None:
    """Products of codes and integer scales do not wrap around."""
    codes, s = np.array([[-8], [7]], np.int8), np.array([[200]], np.uint8)
    assert int4.dq_tensor(codes, s, 2).tolist() == [[-1600.0], [1400.0]]
    assert int4.rtn(np.array([[-1600], [1400]], np.int64), s, 2).tolist() == [[-8], [7]]


@pytest.mark.parametrize("dtype", [np.bool_, np.complex64])
def test_refused(dtype: Any) -> None:
    w: Any = np.ones((4, 2), dtype)
    for call in (lambda: int4.quant_tensor(w, 2), lambda: quant_utils.get_weights_scaling_factor_2(w)):
        with pytest.raises(JaxqError, match=f"the weight has type {w.dtype}: give floats or integers"):
            call()
