"""``jaxq compare``: runs beside each other, from their reports."""

import json
import shutil
from pathlib import Path

import pytest

SMALL = ("calib.samples=2", "calib.length=32", "eval.samples=2", "eval.length=32")


@pytest.fixture
def runs(jaxq, tmp_path) -> Path:
    """A sweep of two runs, a run on other data, a failed run and a dry run."""
    folder = tmp_path / "runs"
    for name, arguments in {
        "sweep": ["-m", "method=rtn_dq", "block_size=32,128", f"hydra.sweep.dir={folder}/sweep"],
        "other": ["method=rtn_dq", "eval.samples=1"],
        "dry": ["method=rtn_dq", "dry_run=true"],
    }.items():
        done = jaxq(*SMALL, *arguments, *([] if name == "sweep" else [f"hydra.run.dir={folder}/{name}"]))
        assert done.code == 0, done.err
    report = json.loads(next(folder.glob("sweep/0-*/report.json")).read_text())
    (folder / "failed").mkdir()
    failed = {"config": report["config"], "overrides": [], "error": "disk full"}
    (folder / "failed" / "report.json").write_text(json.dumps(failed))
    return folder


def test_runs_are_compared(jaxq, runs):
    done = jaxq("compare", str(runs / "sweep"), str(runs / "failed"), str(runs / "other" / "report.json"), "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [Path(row["run"]).name[:1] for row in rows] == ["0", "1", "f", "o"]
    assert [row["block_size"] for row in rows] == [32, 128, 32, 128]
    report = json.loads(next(runs.glob("sweep/1-*/report.json")).read_text())
    runtime = report["accuracy"]["runtimes"]["level 1"]
    figures = {
        "float_mb": report["size"]["source_bytes"] / 1e6,
        "file_mb": report["size"]["target_bytes"] / 1e6,
        "bits_per_weight": report["size"]["bits_per_weight"],
        "perplexity": runtime["perplexity"],
        "kl": runtime["kl"],
        "seconds": report["seconds"]["total"],
    }
    assert {name: rows[1][name] for name in figures} == figures
    assert (rows[2]["error"], rows[2]["kl"]) == ("disk full", None)
    table = jaxq("compare", str(runs / "sweep"), str(runs / "other"), str(runs / "dry"))
    assert table.code == 0, table.err
    assert all(title in table.out for title in ("runs", "ppl", "KL", "float MB", "bits"))
    assert f"{report['size']['target_bytes'] / 1e6:.3g}" in table.out
    assert "different data" in table.out
    assert f"{runs}/failed: disk full" in jaxq("compare", str(runs / "failed"), str(runs / "other")).out
    assert "different" not in jaxq("compare", str(runs / "sweep")).out
    shutil.rmtree(runs)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no report.json"),
        ("{", "cannot be read"),
        ("[]", "not the report of a run"),
        ("{}", "lacks 'config'"),
    ],
)
def test_what_is_no_run_is_refused(jaxq, tmp_path, content, words):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    folder = tmp_path / "empty" if content is None else tmp_path
    folder.mkdir(exist_ok=True)
    done = jaxq("compare", str(folder))
    assert done.code == 2
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert words in done.err and not done.out
