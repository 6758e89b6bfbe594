"""A dry run says what the run then does, and writes no model."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest

from jaxq.formats.registry import make_format
from jaxq.forms.registry import find_form
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.dry_run import estimate
from jaxq.pipeline.job import Gather, Job
from jaxq.pipeline.quantize import quantize_model
from jaxq.runtime.batches import Batch
from jaxq.search.group import quantize_group
from tests.support import models
from tests.support.models import HIDDEN, tokens
from tests.support.running import save

SMALL = ("calib.samples=4", "calib.length=64", "eval.samples=4", "eval.length=64")


@pytest.mark.long
def test_the_command_line(jaxq):
    done = jaxq("method=awq_lite", "block_size=128", "dry_run=true", "hydra.run.dir=dry", *SMALL)
    assert done.code == 0, done.err
    (path,) = done.folder.rglob("estimate.json")
    found = json.loads(path.read_text())["estimate"]
    assert not list(done.folder.rglob("*.onnx")) + list(done.folder.rglob("report.json"))
    ran = jaxq("method=awq_lite", "block_size=128", *SMALL).report
    assert {x["name"]: x["nbytes"] for x in found["layers"]} == {x["name"]: x["nbytes"] for x in ran["layers"]}
    assert found["skipped"] == ran["skipped"]
    assert found["bits_per_weight"] == ran["size"]["bits_per_weight"]
    assert found["target_bytes"] == pytest.approx(ran["size"]["target_bytes"], rel=5e-3)
    assert found["source_bytes"] == ran["size"]["source_bytes"]
    assert set(found["seconds"]) == {"data", "load", "calibrate", "choose formats", "search", "write", "evaluate"}
    assert all(found["seconds"][name] > 0 for name in ("load", "calibrate", "search", "evaluate"))
    assert found["peak_mb"] > 100
    for line in (
        "would be quantized: 28 weights",
        "skipped: lm_head.weight",
        "seconds: about",
        "dry run: nothing is",
    ):
        assert line in done.out


@pytest.mark.long
def test_a_budget(jaxq):
    what = ("method=rtn_dq", "method.bits_per_weight=4.6", *SMALL[:2], "eval.samples=0")
    done = jaxq(*what, "dry_run=true", "hydra.run.dir=dry")
    assert done.code == 0, done.err
    found = json.loads(next(done.folder.rglob("estimate.json")).read_text())["estimate"]
    ran = jaxq(*what).report
    assert found["bits_per_weight"] == found["budget"] == 4.6
    assert 4.5 < ran["size"]["bits_per_weight"] <= 4.6
    assert found["target_bytes"] == pytest.approx(ran["size"]["target_bytes"], rel=5e-3)
    assert found["seconds"]["choose formats"] > 0 and ran["seconds"]["choose formats"] > 0
    assert "chosen weight by weight" in done.out


def test_a_budget_that_nothing_can_use(jaxq):
    """The estimate is of what weights take at most."""
    what = ("method=rtn_dq", "method.bits_per_weight=32", *SMALL[:2], "eval.samples=0")
    done = jaxq(*what, "dry_run=true", "hydra.run.dir=dry")
    assert done.code == 0, done.err
    found = json.loads(next(done.folder.rglob("estimate.json")).read_text())["estimate"]
    ran = jaxq(*what)
    assert "method.bits_per_weight is 32" in ran.out
    assert found["bits_per_weight"] == pytest.approx(ran.report["size"]["bits_per_weight"])


def test_bad_input_is_refused_as_in_a_run(jaxq):
    done = jaxq("dry_run=true", "form=trt", "dtype=nvfp4")
    assert done.code == 2
    assert "form" in done.err


def job(source: Path, method: str, dtype: str, form: str, gather: Gather | None = None) -> Job:
    spec = MethodSpec(method, make_format(dtype), alpha_step=0.5, clip_step=0.5)
    folder = source.parent / "out"
    return Job(source, folder / "out.onnx", spec, find_form(form), (), folder / "cache", gather=gather)


@pytest.mark.parametrize(
    ("name", "method", "dtype", "form"),
    [
        ("swiglu", "rtn_dq", "int4", "dq"),
        ("swiglu", "rtn_dq", "uint4", "dq"),
        ("half", "rtn_dq", "int4", "matmulnbits"),
        ("attention", "awq_full", "int8", "column_major"),
        ("siblings", "rtn_dq", "nvfp4", "portable"),
        ("siblings", "rtn_dq", "nvfp4", "nvfp4_standard"),
        ("mlp", "rtn_dq", "mxfp8", "mx_standard"),
        ("shared", "awq_clip", "int4", "dq"),
        ("gemm_transposed", "rtn", "int4", "qdq"),
        ("embedding", "rtn_dq", "int4", "matmulnbits"),
        ("masked_moe", "awq_full", "int4", "dq"),
        ("dense_moe", "rtn_dq", "mxfp4", "portable"),
        ("convolution", "awq_full", "uint4", "dq"),
    ],
)
def test_sizes_are_those_of_the_file(name, method, dtype, form, tmp_path):
    source = save(models.MODELS[name](), tmp_path)
    gather = Gather(1, make_format("int4", 32)) if name == "embedding" else None
    what = job(source, method, dtype, form, gather)
    rank2 = name.startswith("gemm")
    x = tokens(12, HIDDEN) if rank2 else tokens(2, 6, HIDDEN) if name != "convolution" else tokens(2, 8, 6, 6)
    batches = [] if name in ("half", "embedding") else [Batch({"x": x})]
    found = estimate(what, batches)
    assert not (tmp_path / "out").exists()
    outcome = quantize_model(what, batches)
    # Scaling adds a vector for some groups, which the estimate does not know of.
    scaled = sum(4 * layer.matrices * layer.c_in + 300 for layer in outcome.layers if layer.alpha is not None)
    assert abs(found.target_bytes - outcome.target_bytes) <= 64 + scaled
    assert [(x.name, x.nbytes, x.dtype) for x in found.layers] == [(x.name, x.nbytes, x.dtype) for x in outcome.layers]
    assert found.skipped == outcome.skipped
    assert (found.source_bytes, found.quantized_source_bytes) == (outcome.source_bytes, outcome.quantized_source_bytes)
    assert found.seconds["evaluate"] == 0


def test_time_grows_with_the_data(tmp_path):
    what = job(save(models.attention(), tmp_path), "awq_lite", "int4", "dq")
    rows = [Batch({"x": np.tile(tokens(1, 10, HIDDEN), (8, 20, 1))})]
    few, many = estimate(what, rows), estimate(what, rows * 500, rows)
    assert many.seconds["calibrate"] > 3 * few.seconds["calibrate"]
    assert many.seconds["evaluate"] > 0


@pytest.mark.long
def test_a_sweep_of_dry_runs_has_a_table(jaxq, tmp_path):
    done = jaxq("-m", "method=rtn_dq,awq_lite", "dry_run=true", *SMALL, f"hydra.sweep.dir={tmp_path}/named")
    assert done.code == 0, done.err
    (table,) = tmp_path.glob("named/summary.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["rtn_dq", "awq_lite"]
    assert all(float(row["file_mb"]) > 1 and float(row["seconds"]) > 0 and not row["error"] for row in rows)
    assert not list(tmp_path.glob("named/**/*.onnx"))


def test_a_weight_of_several_activations(tmp_path):
    """There is nothing else to try: rounding stands in for the search."""
    found = estimate(
        job(save(models.shared(), tmp_path), "awq_full", "int4", "dq"), [Batch({"x": tokens(2, 6, HIDDEN)})]
    )
    assert found.seconds["search"] > 0


def test_compilation_counts_once(tmp_path, monkeypatch):
    """However long the first search takes: it is not what each of the others takes."""
    waits = iter([2.0])

    def slow_at_first(*args):
        time.sleep(next(waits, 0.0))
        return quantize_group(*args)

    monkeypatch.setattr("jaxq.pipeline.probes.quantize_group", slow_at_first)
    monkeypatch.setattr("jaxq.pipeline.probes._PROBE_SECONDS", 0.5)
    found = estimate(job(save(models.attention(), tmp_path), "rtn_dq", "int4", "dq"))
    assert found.groups > found.probed == 1
    assert 2 <= found.seconds["search"] < 2 * found.groups - 0.5
