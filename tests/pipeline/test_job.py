"""A job: written in a line of Python, checked, and found again by another process."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jaxq.errors import JaxqError
from jaxq.formats.registry import make_format
from jaxq.forms.registry import FORMS, find_form
from jaxq.methods.registry import METHODS
from jaxq.pipeline import Budget, Gather, Job, MethodSpec, Rule, quantize_model
from jaxq.pipeline.job import check_job
from jaxq.pipeline.quantize import _identity
from tests.support import models
from tests.support.running import save

ROOT = Path(__file__).parents[2]


def full_job() -> Job:
    """A job that says something about everything."""
    int4 = make_format("int4", 32)
    return Job(
        Path("/models/model.onnx"),
        Path("/models/out.onnx"),
        MethodSpec("best", int4),
        find_form("matmulnbits", accuracy_level=1),
        exclude=("*lm_head*",),
        cache=Path("/cache"),
        rules=(Rule(("*v_proj*",), make_format("int8", 32)),),
        gather=Gather(1, int4),
        budget=Budget(4.5),
    )


def test_five_lines_of_python_quantize_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXQ_CACHE", str(tmp_path / "cache"))
    source = save(models.mlp(), tmp_path)
    job = Job(source, tmp_path / "out.onnx", MethodSpec("rtn_dq", make_format("int4", 32)))
    outcome = quantize_model(job)
    assert {layer.dtype for layer in outcome.layers} == {"int4"}
    assert (job.form, job.cache) == (FORMS["dq"], tmp_path / "cache")


def test_a_job_reads_the_same_in_every_process():
    """A stopped run is found by this text: it holds no address, and no order of a set."""
    code = "from tests.pipeline.test_job import _identity, full_job; print(_identity(full_job())); print(full_job())"
    texts = set()
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        texts.add(done.stdout)
    (text,) = texts
    assert text == f"{_identity(full_job())}\n{full_job()}\n"
    assert " at 0x" not in text


@pytest.mark.parametrize(
    "change",
    [
        {"method": MethodSpec("gptq", make_format("int4", 32))},
        {"form": FORMS["dq"]},
        {"exclude": ()},
        {"rules": ()},
        {"gather": None},
        {"budget": Budget(5.0)},
        {"source": Path("/models/other.onnx")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_command_does_not_resume_a_run(change):
    assert _identity(replace(full_job(), **change)) != _identity(full_job())


def test_target_and_accuracy_level_do_not_keep_a_run_from_resuming():
    job = replace(full_job(), target=Path("/elsewhere.onnx"), form=find_form("matmulnbits", accuracy_level=4))
    assert _identity(job) == _identity(full_job())


@pytest.mark.parametrize("name", METHODS)
def test_a_spec_knows_the_steps_of_its_method(name):
    spec = MethodSpec(name, make_format("int4", 32))
    assert spec.steps is METHODS[name]
    assert hash(spec) == hash(replace(spec))


def test_a_job_needs_the_data_of_its_method():
    check_job(full_job(), has_data=True)
    with pytest.raises(JaxqError, match=r"^method best needs calibration data and there is none"):
        check_job(full_job(), has_data=False)
