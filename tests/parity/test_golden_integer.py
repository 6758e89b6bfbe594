"""jaxq.numerics.integer against NVIDIA ModelOpt: recorded numbers (golden/integer.npz), and live where it is installed.

Integers must be equal, and scales at most one rounding apart. Where ModelOpt is wrong, the case gives the reason
(`reasons`, explained in the file), and the test says what jaxq does instead. experiments/parity/make_golden.py writes
the files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.numerics.integer import dq_tensor, find_scales, quant_tensor, rtn

GOLDEN = Path(__file__).parent / "golden" / "integer.npz"
WRONG_SCALES = {"scale_floor", "zero_block", "range_without_zero", "alpha_ignored", "overflow"}


@dataclass(frozen=True)
class Case:
    """One call of ModelOpt: the weight, the arguments and the results."""

    id: str
    parameters: dict[str, Any]
    reasons: frozenset[str]
    w: np.ndarray
    s: np.ndarray
    zp: np.ndarray | None
    codes: np.ndarray
    dq: np.ndarray | None

    def layout(self) -> dict[str, int]:
        """The arguments of all functions."""
        return {name: self.parameters[name] for name in ("block_size", "quantize_axis")}

    def true_codes(self) -> np.ndarray:
        """The codes as numbers: ModelOpt casts unsigned 8-bit codes to int8, which makes some negative."""
        return self.codes if self.zp is None else self.codes.astype(np.uint8)


def load() -> tuple[list[Case], dict[str, dict[str, np.ndarray]]]:
    """The cases with parameters, and the other ones as arrays by name."""
    data = np.load(GOLDEN)
    pools = {name: data[name] for name in ("floats", "codes")}

    def array(place: dict[str, Any]) -> np.ndarray:
        flat = pools[place["pool"]][place["offset"] :][: int(np.prod(place["shape"]))]
        return flat.reshape(place["shape"]).astype(place["dtype"])

    cases, others = [], {}
    for case in json.loads(str(data["meta"]))["cases"]:
        if "parameters" in case:
            w, s, codes = (array(case[name]) for name in ("w", "s", "codes"))
            zp, dq = (array(case[name]) if case[name] else None for name in ("zp", "dq"))
            cases.append(Case(case["id"], case["parameters"], frozenset(case["reasons"]), w, s, zp, codes, dq))
        else:
            others[case["id"]] = {name: array(place) for name, place in case.items() if isinstance(place, dict)}
    return cases, others


CASES, OTHERS = load()


def having(*reasons: str) -> list[Any]:
    return [pytest.param(case, id=case.id) for case in CASES if case.reasons & set(reasons)]


def lacking(*reasons: str) -> list[Any]:
    return [pytest.param(case, id=case.id) for case in CASES if not case.reasons & set(reasons)]


def assert_one_rounding_apart(got: Any, want: np.ndarray) -> None:
    """Same dtype and shape, and every value equal or the next float."""
    got = np.asarray(got)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    far = np.abs(got.astype(np.float64) - want) > np.spacing(np.abs(want))
    assert not far.any(), f"{far.sum()} of {far.size} scales are off, such as {got[far][0]} for {want[far][0]}"


def spread(per_block: Any, case: Case) -> np.ndarray:
    """One value a block -> one value a weight, as float64."""
    axis = case.parameters["quantize_axis"]
    block = case.parameters["block_size"] if case.parameters["block_size"] != -1 else case.w.shape[axis]
    repeated = np.repeat(np.asarray(per_block, np.float64), block, axis)
    return np.take(repeated, range(case.w.shape[axis]), axis)


def round_trip(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """jaxq's dequantized weight and its scales, both [c_in, c_out] in float64."""
    q, s, zp = quant_tensor(jnp.asarray(case.w), **case.parameters)
    return np.asarray(dq_tensor(q, s, zp=zp, **case.layout()), np.float64), spread(s, case)


def assert_within_half_a_step(case: Case) -> None:
    """Every weight comes back to half a scale (and the rounding of a product in the weight's dtype)."""
    dq, s = round_trip(case)
    slack = 4 * np.finfo(case.w.dtype).eps * np.abs(case.w.astype(np.float64))
    assert (np.abs(dq - case.w) <= s / 2 + slack).all()


@pytest.mark.parametrize("case", lacking(*WRONG_SCALES))
def test_find_scales(case: Case) -> None:
    s, zp = find_scales(jnp.asarray(case.w), **case.parameters)
    assert_one_rounding_apart(s, case.s)
    if case.zp is None:
        assert zp is None
    else:
        np.testing.assert_array_equal(np.asarray(zp), case.zp)


@pytest.mark.parametrize("case", lacking("half_division", "overflow"))
def test_rtn_on_modelopts_scales(case: Case) -> None:
    """Given the scales and zero points, the codes are equal even where ModelOpt's choice of scale is poor."""
    zp = None if case.zp is None else jnp.asarray(case.zp)
    codes = rtn(jnp.asarray(case.w), jnp.asarray(case.s), zp=zp, num_bits=case.parameters["num_bits"], **case.layout())
    np.testing.assert_array_equal(np.asarray(codes), case.true_codes())


@pytest.mark.parametrize("case", [c for c in lacking("overflow", "int8_wrap") if c.values[0].dq is not None])
def test_dq_tensor_on_modelopts_codes(case: Case) -> None:
    zp = None if case.zp is None else jnp.asarray(case.zp)
    dq = np.asarray(dq_tensor(jnp.asarray(case.codes), jnp.asarray(case.s), zp=zp, **case.layout()))
    assert case.dq is not None and dq.dtype == case.dq.dtype
    np.testing.assert_array_equal(dq, case.dq)


@pytest.mark.parametrize("case", lacking("half_division", *WRONG_SCALES))
def test_quant_tensor(case: Case) -> None:
    codes, s, _ = quant_tensor(jnp.asarray(case.w), **case.parameters)
    assert_one_rounding_apart(s, case.s)
    np.testing.assert_array_equal(np.asarray(codes), case.true_codes())


def test_alpha_per_block() -> None:
    """ModelOpt takes one alpha a block flat, column by column; jaxq takes it in the shape of the scales."""
    arrays = OTHERS["alpha_per_block"]
    s, _ = find_scales(jnp.asarray(arrays["w"]), 16, alpha=jnp.asarray(arrays["alpha"]))
    assert_one_rounding_apart(s, arrays["s"])


@pytest.mark.parametrize("case", having("scale_floor", "range_without_zero", "int8_wrap", "zero_block"))
def test_every_weight_comes_back_to_half_a_step(case: Case) -> None:
    """Instead of a floor, a zero point that is cut off, or wrapped codes: jaxq's usual bound."""
    assert_within_half_a_step(case)


@pytest.mark.parametrize("case", [c for c in having("scale_floor") if "tiny" in str(c.id)])
def test_tiny_weights_keep_their_resolution(case: Case) -> None:
    """The columns near 1e-5, 5e-6 and 1e-20: ModelOpt loses the last one wholly, jaxq none of them."""
    dq, _ = round_trip(case)
    errors = np.linalg.norm(dq - case.w, axis=0) / np.linalg.norm(case.w.astype(np.float64), axis=0)
    assert errors.max() < 0.2
    if case.dq is not None:
        assert (case.dq[:, 3] == 0).all()


@pytest.mark.parametrize("case", having("zero_block"))
def test_a_block_of_zeros_has_scale_one(case: Case) -> None:
    """ModelOpt's scale there is its floor; the codes mean zero either way, and the other blocks agree."""
    s, _ = find_scales(jnp.asarray(case.w), **case.parameters)
    zero = case.s == case.s.min()
    assert (np.asarray(s)[zero] == 1).all()
    assert_one_rounding_apart(np.where(zero, 1, np.asarray(s)), np.where(zero, np.float32(1), case.s))
    dq, _ = round_trip(case)
    assert (dq[case.w == 0] == 0).all()


@pytest.mark.parametrize(
    "case", [c for c in having("range_without_zero") if str(c.id).startswith(("positive", "negative"))]
)
def test_blocks_of_one_sign_do_not_saturate(case: Case) -> None:
    """ModelOpt gives back about a tenth of weights between 1 and 1.1; jaxq's range always holds zero."""
    dq, _ = round_trip(case)
    assert case.dq is not None
    assert np.abs(case.dq - case.w).min() > 0.8
    assert np.abs(dq - case.w).max() < 0.05


@pytest.mark.parametrize("case", having("overflow"))
def test_a_range_beyond_float32(case: Case) -> None:
    assert_within_half_a_step(case)


@pytest.mark.parametrize("case", having("alpha_ignored"))
def test_alpha_counts_with_a_zero_point(case: Case) -> None:
    s, _ = find_scales(jnp.asarray(case.w), **case.parameters)
    np.testing.assert_allclose(np.asarray(s), case.s * case.parameters["alpha"], rtol=1e-6)


@pytest.mark.parametrize("case", [c for c in having("half_division") if not c.values[0].reasons & WRONG_SCALES])
def test_half_precision_codes_differ_only_at_ties(case: Case) -> None:
    """jaxq divides in float32, ModelOpt in float16: one step apart, and only next to a tie."""
    codes, s, zp = quant_tensor(jnp.asarray(case.w), **case.parameters)
    assert_one_rounding_apart(s, case.s)
    if case.zp is not None:
        np.testing.assert_array_equal(np.asarray(zp), case.zp)
    apart = np.asarray(codes).astype(int) - case.true_codes()
    quotient = case.w.astype(np.float64) / spread(case.s, case)
    from_tie = np.abs(np.abs(quotient - np.floor(quotient)) - 0.5)
    assert np.abs(apart).max() <= 1
    assert (from_tie[apart != 0] <= np.abs(quotient[apart != 0]) * np.finfo(np.float16).eps).all()


def live_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {f"{k}x{n}": rng.normal(size=(k, n)).astype(np.float32) for k, n in ((256, 48), (300, 33), (65, 7))}


@pytest.mark.parametrize("use_zero_point", [False, True])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_live(block_size: int, use_zero_point: bool) -> None:
    """Fresh random weights through both libraries."""
    modelopt = pytest.importorskip("modelopt.onnx.quantization.quant_utils")
    for name, w in live_weights().items():
        want, want_s, want_zp = modelopt.quant_tensor(w, block_size, use_zero_point=use_zero_point)
        got, s, zp = quant_tensor(jnp.asarray(w), block_size, use_zero_point=use_zero_point)
        assert_one_rounding_apart(s, want_s)
        np.testing.assert_array_equal(np.asarray(got), want, err_msg=name)
        if use_zero_point:
            np.testing.assert_array_equal(np.asarray(zp), want_zp, err_msg=name)
        want_dq = modelopt.dq_tensor(want, want_s, block_size, zp=want_zp)
        np.testing.assert_array_equal(np.asarray(dq_tensor(got, s, block_size, zp=zp)), want_dq, err_msg=name)


@pytest.mark.parametrize("case", lacking("overflow"))
def test_live_modelopt_is_as_recorded(case: Case) -> None:
    """The recorded numbers still are those of the installed ModelOpt."""
    modelopt = pytest.importorskip("modelopt.onnx.quantization.quant_utils")
    layout = case.layout()
    block = modelopt.update_block_size(layout["block_size"], w=case.w, quantize_axis=layout["quantize_axis"])
    codes, s, zp = modelopt.quant_tensor(case.w, **{**case.parameters, "block_size": block})
    np.testing.assert_array_equal(s, case.s)
    np.testing.assert_array_equal(codes, case.codes)
    if case.zp is not None:
        np.testing.assert_array_equal(zp, case.zp)
