"""jaxq.quant_utils against recorded numbers of NVIDIA ModelOpt: NVFP4, MX exponents, bfloat16 and packing.

Where jaxq differs on purpose, the case gives the reason (`reasons`), and the test says how the results differ.
test_golden_integer.py and test_golden_awq.py test the maths beneath; the other files test the pages' functions.
"""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxq import quant_utils
from jaxq.numerics.packing import unpack_int4
from tests.support.golden import assert_close, cases, load

PAGES, PACKING = load("pages"), load("packing")


@pytest.mark.parametrize("case", cases(PAGES, "quantize"))
def test_nvfp4(case: dict[str, Any]) -> None:
    """Each function on ModelOpt's own numbers; bfloat16 and float16 weights too."""
    w, block_size, s2 = case["w"], case["parameters"]["block_size"], np.float32(case["s2"])
    assert_close(quant_utils.get_weights_scaling_factor_2(w), np.asarray(s2))
    assert_close(quant_utils.get_weights_scaling_factor(w, block_size, s2), case["s"])
    assert_close(quant_utils.quantize(w, block_size, case["s"], s2), case["scaled"])


@pytest.mark.parametrize("case", cases(PAGES, "get_amax"))
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


def test_amax_differs_only_on_axis_0() -> None:
    wrong = {case.values[0]["id"] for case in cases(PAGES, "get_amax") if case.values[0]["reasons"]}
    assert wrong and all("2d-0-8" in name for name in wrong)


@pytest.mark.parametrize("case", cases(PAGES, "compute_e8m0"))
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


@pytest.mark.parametrize("case", cases(PAGES, "quant_tensor"))
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


@pytest.mark.parametrize("case", cases(PACKING, "pack_float32_to_4bit_optimized"))
def test_python_packer(case: dict[str, Any]) -> None:
    packed = quant_utils.pack_float32_to_4bit_optimized(case["input"], case["parameters"]["signed"])
    np.testing.assert_array_equal(packed, case["packed"])


@pytest.mark.parametrize("case", cases(PACKING, "pack_float32_to_4bit_cpp_based"))
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
    clipped = np.clip(array.astype(np.float64), low, high)
    ties = clipped % 1 == 0.5
    np.testing.assert_array_equal(mine[~ties], theirs[~ties])
    np.testing.assert_array_equal(theirs[ties], (np.sign(clipped) * np.floor(np.abs(clipped) + 0.5))[ties])
    assert (mine[ties] % 2 == 0).all() and (np.abs(mine) <= np.abs(theirs)).all() and (mine != theirs).any()


@pytest.mark.parametrize("case", cases(PACKING, "pack_weights_to_int4"))
def test_weight_packer(case: dict[str, Any]) -> None:
    packed = quant_utils.pack_weights_to_int4(case["input"])
    assert packed.dtype == case["packed"].dtype
    np.testing.assert_array_equal(packed, case["packed"])
