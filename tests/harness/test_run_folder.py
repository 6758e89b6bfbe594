"""Terminal and folder of a run: its log, the latest run, float weights; failed and dry runs leave nothing."""

import csv
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from jaxq.harness import command
from jaxq.harness import progress_bars as bars
from jaxq.harness.failures import CLOSED_PIPE
from jaxq.harness.run_folder import link_latest, remove_without_result
from jaxq.harness.run_log import LoggedConsole, run_log

SMALL = ("method=rtn_dq", "calib.samples=0", "eval.samples=3", "eval.length=16")


def test_a_run_leaves_its_log_and_is_the_latest(jaxq):
    done = jaxq(*SMALL)
    assert done.code == 0, done.err
    log = (done.run_folder / "run.log").read_text()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO overrides: method=rtn_dq", log)
    assert "onnxruntime " in log.splitlines()[1]
    said = [line.rstrip() for line in done.out.splitlines() if line.strip()]
    assert [line.split(" INFO ", 1)[1] for line in log.splitlines()[2:]] == said
    assert (done.folder / "outputs" / "latest").resolve() == done.run_folder.resolve()
    assert not list(done.folder.rglob("*.partial"))
    assert re.search(r"^evaluation: 3 batches, about \d+ s, \d+% of the run$", done.out, re.MULTILINE)
    assert "level 1: products in float32" in done.out
    (last,) = [line for line in done.out.splitlines() if line.startswith("next: ")]
    assert f"onnxruntime.InferenceSession('{done.run_folder}/model.onnx')" in last
    assert f"jaxq compare {done.run_folder} RUN" in last


def test_float_weights_are_named_with_the_options_that_quantize_them(jaxq):
    """The size that is promised is that of the file."""
    done = jaxq("method=rtn_dq", "calib.samples=0", "eval.samples=0")
    (note,) = [note for note in done.report["notes"] if "are float weights" in note]
    ((options, size),) = re.findall(r": (.*) quantizes them, and the file takes about ([\d.]+) MB", note)
    assert set(options.split()) == {"method.exclude=[]", "gather.axis=1"}
    again = jaxq("method=rtn_dq", "calib.samples=0", "eval.samples=0", *options.split())
    assert again.report["size"]["target_bytes"] / 1e6 == pytest.approx(float(size), rel=0.01)
    assert not [note for note in again.report["notes"] if "are float weights" in note]


def test_dry_and_failed_runs_leave_no_folder(jaxq, tmp_path):
    assert jaxq(*SMALL, "dry_run=true").code == 0
    done = jaxq(*SMALL, "dry_run=true")
    assert not list(done.folder.iterdir())
    failed = jaxq(*SMALL, "block_size=1")
    assert failed.code == 2
    assert not list(failed.folder.iterdir())
    kept = jaxq(*SMALL, "dry_run=true", f"hydra.run.dir={tmp_path}/kept")
    assert kept.code == 0
    assert json.loads((tmp_path / "kept" / "estimate.json").read_text())["estimate"]["layers"]


def test_a_failed_run_leaves_the_files_of_an_earlier_one(jaxq, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    assert jaxq(*SMALL, "block_size=1", f"hydra.run.dir={tmp_path}/own").code == 2
    assert (tmp_path / "own" / "notes.txt").read_text() == "mine"


def test_a_sweep_keeps_the_row_of_a_failed_run_and_not_its_folder(jaxq):
    done = jaxq("-m", *SMALL, "block_size=32,1")
    assert done.code == 2
    (table,) = done.folder.rglob("summary.csv")
    rows = list(csv.DictReader(table.open()))
    assert [bool(row["error"]) for row in rows] == [False, True]
    assert done.err.count("\n") == 1 and done.err.endswith("(run 1)\n")
    assert [path.name[:1] for path in table.parent.iterdir() if path.is_dir()] == ["0"]
    assert (done.folder / "outputs" / "latest").resolve() == table.parent.resolve()


def test_the_latest_run_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        link_latest(tmp_path / "outputs" / name)
        assert (tmp_path / "outputs" / "latest").readlink() == Path(name)
    (tmp_path / "elsewhere").mkdir()
    link_latest(tmp_path / "elsewhere")
    assert (tmp_path / "outputs" / "latest").readlink() == Path("..") / "elsewhere"
    assert (tmp_path / "outputs" / "latest").resolve() == tmp_path / "elsewhere"


def test_no_folder_is_made_for_the_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    link_latest(tmp_path / "elsewhere")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_a_run_in_a_folder_of_the_user_is_the_latest_too(jaxq, tmp_path):
    (tmp_path / "call0" / "outputs").mkdir(parents=True)
    own = tmp_path / "own"
    done = jaxq(*SMALL, f"hydra.run.dir={own}")
    assert done.code == 0, done.err
    assert (done.folder / "outputs" / "latest").resolve() == own
    alone = jaxq(*SMALL, f"hydra.run.dir={own}")
    assert alone.code == 0 and not list(alone.folder.iterdir())


DRY_OR_FAILED = {
    "dry": (["dry_run=true", "block_size=32,64"], 0),
    "failed": (["block_size=1,0"], 2),
    "never begun": (["method=rtn_dq,nonsense"], 2),
}


@pytest.mark.parametrize(("options", "code"), DRY_OR_FAILED.values(), ids=DRY_OR_FAILED)
def test_a_sweep_without_a_result_leaves_nothing(jaxq, tmp_path, options, code):
    done = jaxq("-m", *SMALL, *options)
    assert done.code == code
    assert not list(done.folder.iterdir())
    assert "summary.csv" not in done.out
    named = jaxq("-m", *SMALL, *options, f"hydra.sweep.dir={tmp_path}/named")
    assert not list(named.folder.iterdir())
    assert (tmp_path / "named").exists() == ("method=rtn_dq,nonsense" not in options)


def test_a_sweep_that_is_stopped_keeps_its_finished_runs_alone(jaxq, monkeypatch):
    real, calls = command.run, iter([None, KeyboardInterrupt()])

    def stopped(*arguments):
        if error := next(calls):
            raise error
        return real(*arguments)

    monkeypatch.setattr(command, "run", stopped)
    done = jaxq("-m", *SMALL, "block_size=32,64")
    assert done.code == 130
    assert [path.parent.name[:1] for path in done.folder.rglob("model.onnx")] == ["0"]
    calls = iter([KeyboardInterrupt()])
    done = jaxq("-m", *SMALL, "block_size=32,64")
    assert done.code == 130
    assert not list(done.folder.iterdir())


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ([], 1),
        (["dry_run=true"], 0),
        (["-m", "block_size=32,64"], 2),
    ],
    ids=["run", "dry run", "sweep"],
)
def test_a_run_whose_output_nobody_reads_is_finished(tmp_path, options, files):
    """As under ``| head``, with a reader that is gone at once."""
    reader, writer = os.pipe()
    os.close(reader)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "jaxq", "run", *SMALL, *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root, "JAXQ_CACHE": str(tmp_path / "cache")},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, "")
    logs = list(tmp_path.glob("outputs/**/run.log"))
    assert len(logs) == len(list(tmp_path.glob("outputs/**/report.json"))) == files
    assert all(" next: " in log.read_text() for log in logs)
    assert (tmp_path / "outputs" / "latest").exists() == bool(files)


def test_no_link_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "a").mkdir(parents=True)

    def refuse(*args: object, **options: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    link_latest(tmp_path / "outputs" / "a")
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["a"]


def test_a_folder_with_a_model_stays(tmp_path):
    (tmp_path / "model.onnx").touch()
    (tmp_path / ".run.log.partial").touch()
    remove_without_result(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    remove_without_result(tmp_path / "missing")


def test_the_log_has_warnings_and_none_of_a_failure(tmp_path, capfd):
    with run_log(tmp_path, ["a=1"], {"jax": "1"}):
        LoggedConsole(file=io.StringIO()).print("said")
        warnings.warn("careful", UserWarning, stacklevel=1)
        logging.getLogger("another").warning("beware")
    log = (tmp_path / "run.log").read_text()
    assert all(words in log for words in ("INFO said", "careful", "WARNING beware", "jax 1", "a=1"))
    assert "careful" in capfd.readouterr().err
    with pytest.raises(ValueError, match="broken"), run_log(tmp_path / "b", [], {}):
        raise ValueError("broken")
    assert not (tmp_path / "b" / "run.log").exists()


def test_a_file_gets_a_line_now_and_then(monkeypatch):
    out, now = io.StringIO(), iter(range(0, 10_000, 10))
    monkeypatch.setattr(bars, "perf_counter", lambda: float(next(now)))
    with bars.progress_bars(Console(file=out, width=80)) as progress:
        advance = progress("search", 210)
        for _ in range(7):
            advance()
    lines = out.getvalue().splitlines()
    assert lines == [
        "search: weight 3 of 210, 0:00:30 spent, about 0:34:30 left",
        "search: weight 6 of 210, 0:01:00 spent, about 0:34:00 left",
    ]


def test_a_terminal_shows_the_weight_and_the_time_left():
    out = io.StringIO()
    with bars.progress_bars(Console(file=out, width=120, force_terminal=True)) as progress:
        advance = progress("search", 210)
        for _ in range(12):
            advance()
            time.sleep(0.01)
    assert "weight 12 of 210" in out.getvalue()
    assert "left:" in out.getvalue()


def test_the_evaluation_is_announced_with_its_share(monkeypatch):
    out, clock = io.StringIO(), iter([0.0, 50.0, 50.0, 55.0, 55.0, 56.0, 56.0])
    monkeypatch.setattr(bars, "perf_counter", lambda: next(clock))
    with bars.progress_bars(Console(file=out, width=120), "eval=quick takes 16 samples") as progress:
        advance = progress("evaluate", 46)
        advance()
        advance()
    assert out.getvalue() == "evaluation: 46 batches, about 50 s, 50% of the run; eval=quick takes 16 samples\n"


def test_a_quick_evaluation_reads_a_quarter(jaxq):
    done = jaxq("--cfg", "job", "eval=quick")
    assert done.code == 0
    assert re.search(r"eval:\n(  .*\n)*  samples: 16\n", done.out)
    assert "samples: 64" in jaxq("--cfg", "job").out
