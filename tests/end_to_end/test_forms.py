"""Runs with each form: what is measured, and that forms with the same codes get the same figures."""

import math

import pytest

from jaxq.forms.registry import FORMS

SMALL = ("method=rtn_dq", "calib.samples=0", "eval.samples=4", "eval.length=64")
DTYPES = {"nvfp4_standard": "nvfp4", "mx_standard": "mxfp8", "portable": "nvfp4"}


def accuracy(report: dict) -> dict[str, dict[str, float]]:
    assert all(math.isfinite(x) for figures in report["accuracy"]["runtimes"].values() for x in figures.values())
    return report["accuracy"]["runtimes"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_judged(form, jaxq):
    done = jaxq(*SMALL, f"form={form}", f"dtype={DTYPES.get(form, 'int4')}")
    assert done.code == 0, done.err
    runtimes = accuracy(done.report)
    assert set(runtimes) == ({"level 1", "default"} if FORMS[form].runs else {"level 1"})
    assert 0 < runtimes["level 1"]["kl"] < 0.1
    assert ("onnxruntime cannot run form=" in done.out) != FORMS[form].runs
    expected = 4.5 if "nvfp4" in DTYPES.get(form, "") else 8.25 if form == "mx_standard" else 4.25
    if form == "matmulnbits":
        expected = 4.37  # 688 rows are stored as 6 whole blocks of 128
    assert done.report["size"]["bits_per_weight"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("one", "other", "dtype"),
    [
        pytest.param("portable", "nvfp4_standard", "nvfp4", id="NVFP4"),
        pytest.param("portable", "mx_standard", "mxfp4", id="MXFP4"),
        pytest.param("dq", "trt", "int4", id="INT4"),
        pytest.param("dq", "matmulnbits", "int4", id="MatMulNBits"),
    ],
)
def test_forms_of_the_same_codes_get_the_same_figures(one, other, dtype, jaxq):
    both = [accuracy(jaxq(*SMALL, f"form={form}", f"dtype={dtype}").report)["level 1"] for form in (one, other)]
    assert both[0]["perplexity"] == pytest.approx(both[1]["perplexity"], rel=1e-4)
    assert both[0]["kl"] == pytest.approx(both[1]["kl"], rel=5e-3)


def test_matmulnbits_computes_as_its_level_says(jaxq):
    """Level 1 is measured at level 1 whatever the file says; the default is what the file says."""
    coarse = accuracy(jaxq(*SMALL, "form=matmulnbits").report)
    assert coarse["default"] != coarse["level 1"]
    exact = accuracy(jaxq(*SMALL, "form=matmulnbits", "form.accuracy_level=1").report)
    assert exact["default"] == exact["level 1"] == coarse["level 1"]


def test_a_sweep_over_forms_shows_them(jaxq):
    done = jaxq("-m", *SMALL, "dtype=nvfp4", "form=portable,nvfp4_standard")
    assert done.code == 0, done.err
    assert [text for text in done.out.splitlines() if "nvfp4_standard" in text and "rtn_dq" in text]
    assert "portable" in done.out
    (summary,) = done.folder.glob("outputs/sweeps/**/summary.csv")
    assert "nvfp4,16,float8_e4m3fn,nvfp4_standard" in summary.read_text()


def test_embeddings_and_mixed_dtypes(jaxq):
    done = jaxq(*SMALL, "gather.axis=1", "gather.dtype=int8", "mixed.int8=[*v_proj*]")
    assert done.code == 0, done.err
    layers = {x["name"]: (x["dtype"], x["block_size"]) for x in done.report["layers"]}
    assert layers["model.embed_tokens.weight"] == ("int8", 32)
    assert {kind for name, kind in layers.items() if "v_proj" in name} == {("int8", -1)}
    assert {kind for name, kind in layers.items() if "q_proj" in name} == {("int4", 128)}
