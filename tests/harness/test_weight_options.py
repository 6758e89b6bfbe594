"""Options on some weights that the user gives: those that fit none are refused with what to write instead."""

import csv

import onnx
import pytest

import jaxq as library
from jaxq.errors import JaxqError
from tests.support import models

SMALL = ("method=rtn_dq", "calib.samples=0", "eval.samples=0")

REFUSED = {
    "part of a name": ("method.exclude=lm_head", "whole names are compared, so write '*lm_head*' for 'lm_head.weight'"),
    "part of many names": (
        "method.exclude=[v_proj]",
        "write '*v_proj*' for 'model.layers.0.self_attn.v_proj.weight' and 3 more",
    ),
    "the beginning of no name": ("method.exclude=[v_proj*]", "write '*v_proj*' for "),
    "misspelt": ("method.exclude=*lm_haed*", "did you mean '*lm_head*', as in 'lm_head.weight'?"),
    "in capitals": ("method.exclude=LM_HEAD", "did you mean '*lm_head*'"),
    "one of two": ("method.exclude=[*lm_head*,*nothing*]", "has '*nothing*', which fits no weight or node: names are "),
    "a group of options": ("method={exclude: [lm_head]}", "method.exclude has 'lm_head'"),
    "part of a name in 8 bits": ("mixed.int8=v_proj", "mixed.int8 has 'v_proj', which fits no weight or node: "),
    "excluded": ("mixed.int8=*lm_head*", "stays float: excluded by the pattern '*lm_head*'"),
    "skipped": ("mixed.int8=*embed*", "'model.embed_tokens.weight' stays float: a table that Gather reads"),
}


@pytest.mark.parametrize(("option", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("dry", [[], ["dry_run=true"]], ids=["run", "dry run"])
def test_a_pattern_without_effect_is_refused(jaxq, option, words, dry):
    done = jaxq(*SMALL, option, *dry)
    assert done.code == 2
    assert words in done.err and done.err.count("\n") == 1
    assert not list(done.folder.iterdir())


def test_a_table_has_its_own_dtype(jaxq):
    done = jaxq(*SMALL, "gather.axis=1", "mixed.int8=[*embed*]")
    assert done.code == 2
    assert "'model.embed_tokens.weight' is a table of Gather, whose dtype is gather.dtype" in done.err


def test_names_of_weights_and_of_nodes_are_taken(jaxq):
    names = "[lm_head.weight,/model/layers.0/self_attn/q_proj/*]"
    done = jaxq(*SMALL, f"method.exclude={names}")
    assert done.code == 0, done.err
    reasons = {weight["name"]: weight["reason"] for weight in done.report["skipped"]}
    assert "excluded" in reasons["lm_head.weight"]
    assert "excluded" in reasons["model.layers.0.self_attn.q_proj.weight"]


def test_the_pattern_of_the_defaults_may_fit_nothing(jaxq, tmp_path):
    """It is refused once the user gives it."""
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    arguments = ("model=onnx", f"model.path={tmp_path / 'mlp.onnx'}", *SMALL, "block_size=16")
    done = jaxq(*arguments)
    assert done.code == 0, done.err
    assert done.report["unmatched_patterns"] == ["*lm_head*"]
    assert jaxq(*arguments, "method.exclude=*lm_head*").code == 2


def test_the_preset_may_ask_for_tables_that_a_model_lacks(jaxq, tmp_path):
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    arguments = ("quantize", str(tmp_path / "mlp.onnx"), "method=rtn_dq", "block_size=16")
    done = jaxq(*arguments)
    assert done.code == 0, done.err
    assert "gather" not in done.out
    refused = jaxq(*arguments, "gather.dtype=int8")
    assert refused.code == 2
    assert "gather.dtype changes nothing: the model has no table of Gather" in refused.err


def test_only_that_job_of_a_sweep_is_refused(jaxq):
    done = jaxq("-m", *SMALL, "method.exclude=[lm_head],['*lm_head*']")
    assert done.code == 2
    (summary,) = done.folder.rglob("summary.csv")
    errors = [row["error"] for row in csv.DictReader(summary.open())]
    assert ["write '*lm_head*'" in error for error in errors] == [True, False]


def test_python_refuses_it_too(tmp_path):
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    options = ["block_size=16", "method.exclude=[dow]"]
    with pytest.raises(JaxqError, match=r"write '\*dow\*' for 'down'"):
        library.quantize(tmp_path / "mlp.onnx", tmp_path / "out", "rtn_dq", options=options)
    assert not (tmp_path / "out").exists()
