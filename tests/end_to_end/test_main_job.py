"""The main job on the embedded model, from the command line to its files."""

import csv
import hashlib

import numpy as np
import onnx
import pytest

from jaxq.embedded import documents, text_hash

SMALL = ("calib.samples=4", "calib.length=64", "eval.samples=4", "eval.length=64")


def test_awq_lite_writes_the_model_and_a_full_report(jaxq):
    done = jaxq("method=awq_lite", "block_size=128", *SMALL)
    assert done.code == 0, done.err
    report, folder = done.report, done.run_folder
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)

    level_1 = report["accuracy"]["runtimes"]["level 1"]
    assert 1 < report["accuracy"]["float_perplexity"] < level_1["perplexity"] * 1.05
    assert 0 < level_1["kl"] < 0.05
    assert 0.8 < level_1["top1"] <= 1
    assert set(report["accuracy"]["runtimes"]) == {"level 1", "default"}
    assert report["accuracy"]["tokens"] == 4 * 63

    assert len(report["layers"]) == 28
    assert all(layer["loss"] <= layer["loss_rtn"] * 1.00001 for layer in _groups(report["layers"]))
    assert any(layer["alpha"] is not None for layer in report["layers"])
    assert all(0 < layer["relative_output_error"] < 0.5 and layer["sqnr_db"] > 5 for layer in report["layers"])
    reasons = {d["name"]: d["reason"] for d in report["skipped"]}
    assert "*lm_head*" in reasons["lm_head.weight"]
    assert "Gather" in reasons["model.embed_tokens.weight"]
    assert len(reasons) + len(report["layers"]) == 28 + 2 + 9 + 1

    assert 4 < report["size"]["bits_per_weight"] < 4.5
    assert report["size"]["target_bytes"] == (folder / "model.onnx").stat().st_size
    assert all(report["hashes"][n] for n in ("model", "calibration_data", "evaluation_data", "output"))
    assert report["hashes"]["calibration_text"] == text_hash(documents("calib"))
    assert report["hashes"]["evaluation_text"] == text_hash(documents("eval"))
    assert {"calibrate", "search", "write", "evaluate", "total"} <= set(report["seconds"])
    assert report["versions"]["onnxruntime"] and report["versions"]["jaxq"] and report["device"]["processor"]
    assert report["config"]["block_size"] == 128
    with (folder / "layers.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 28
    for word in ("perplexity", "KL", "top-1", "skipped: lm_head.weight", "seconds"):
        assert word in done.out


def _groups(layers):
    """One row for each sibling group, losses summed: the search minimizes that sum."""
    sums = {}
    for layer in layers:
        row = sums.setdefault(layer["activation"], {"loss": 0.0, "loss_rtn": 0.0})
        row["loss"] += layer["loss"]
        row["loss_rtn"] += layer["loss_rtn"]
    return sums.values()


def test_two_runs_give_the_same_bytes_and_the_second_finds_the_moments(jaxq, tmp_path):
    arguments = ("method=awq_full", f"cache_dir={tmp_path / 'own'}", *SMALL[:2], "eval.samples=0")
    first, second = jaxq(*arguments), jaxq(*arguments)
    digests = [hashlib.sha256((d.run_folder / "model.onnx").read_bytes()).hexdigest() for d in (first, second)]
    assert digests[0] == digests[1]
    windows = [d.report["calibration"]["windows"] for d in (first, second)]
    assert windows[0] and all(w["runs"] == 1 for w in windows[0])
    assert windows[1] == []
    assert second.report["calibration"]["moments_from_cache"] == 16
    assert first.report["layers"] == second.report["layers"]


@pytest.mark.long
def test_a_sweep_calibrates_once_and_ends_with_one_table(jaxq, tmp_path):
    own = f"cache_dir={tmp_path / 'own'}"
    done = jaxq("-m", "method=rtn_dq,awq_lite", "block_size=32,128", own, *SMALL[:2], "eval.samples=0")
    assert done.code == 0, done.err
    (summary,) = done.folder.glob("outputs/sweeps/**/summary.csv")
    with summary.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["block_size"]) for r in rows] == [
        ("rtn_dq", "32"),
        ("rtn_dq", "128"),
        ("awq_lite", "32"),
        ("awq_lite", "128"),
    ]
    assert [r["moments_from_cache"] for r in rows] == ["0", "16", "16", "16"]
    table = done.out[done.out.rindex("\nsweep") :]
    assert table.count("awq_lite") == 2 and table.count("rtn_dq") == 2


def test_a_sweep_goes_on_after_a_failed_run_and_exits_with_an_error(jaxq):
    done = jaxq("-m", "method=rtn_dq", "block_size=1,128", *SMALL[:2], "eval.samples=0")
    assert done.code == 2
    assert "block_size is 1:" in done.err
    (report,) = done.folder.glob("outputs/sweeps/**/report.json")  # the run that failed leaves its row alone
    assert (report.parent / "model.onnx").is_file()
    with (report.parents[1] / "summary.csv").open() as file:
        assert ["block_size is 1:" in row["error"] for row in csv.DictReader(file)] == [True, False]


@pytest.mark.long
def test_a_sweep_tells_what_was_swept_and_what_a_budget_chose(jaxq):
    done = jaxq("-m", "method=rtn_dq", "method.bits_per_weight=1,4.3,8.5", *SMALL[:2], "eval.samples=0")
    assert done.code == 2
    (summary,) = done.folder.glob("outputs/sweeps/**/summary.csv")
    with summary.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["block_size"] == "mixed"
    assert (rows[2]["dtype"], rows[2]["block_size"]) == ("int8", "-1")
    assert [r["overrides"].split()[1] for r in rows] == [f"method.bits_per_weight={b}" for b in ("1", "4.3", "8.5")]
    table = done.out[done.out.rindex("\nsweep") :]
    assert all(table.count(f" bits_per_weight={bits} ") == 1 for bits in ("1", "4.3", "8.5"))


def test_rtn_keeps_the_float_weights_and_agrees_with_rtn_dq(jaxq):
    quantized, kept = jaxq("method=rtn_dq", *SMALL), jaxq("method=rtn", *SMALL)
    assert kept.report["size"]["target_bytes"] > 2 * quantized.report["size"]["target_bytes"]
    figures = [d.report["accuracy"]["runtimes"]["level 1"]["perplexity"] for d in (quantized, kept)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


def test_an_onnx_file_with_tokens(jaxq, cache, tmp_path):
    jaxq("method=rtn_dq", "calib.samples=0", "eval.samples=0")
    (path,) = cache.glob("embedded-*.onnx")
    before = path.read_bytes()
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "tokens.npz", calib=rng.integers(0, 2048, (4, 32)), eval=rng.integers(0, 2048, (3, 48)))
    done = jaxq("model=onnx", f"model.path={path}", f"calib.tokens={tmp_path / 'tokens.npz'}", "method=awq_clip")
    assert done.code == 0, done.err
    assert done.report["calibration"]["tokens"] == 4 * 32
    assert done.report["accuracy"]["tokens"] == 3 * 47
    assert any(layer["clip_share"] > 0 for layer in done.report["layers"])
    assert path.read_bytes() == before


def test_an_onnx_file_with_text_and_a_tokenizer(jaxq, cache, tmp_path):
    jaxq("method=rtn_dq", "calib.samples=0", "eval.samples=0")
    (path,) = cache.glob("embedded-*.onnx")
    (tmp_path / "calib.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "eval.txt").write_text("A list is a mutable sequence of objects. " * 200)
    from jaxq import embedded

    done = jaxq(
        *("model=onnx", f"model.path={path}", "method=awq_lite", "calib.length=64", "eval.length=64"),
        *(f"calib.text={tmp_path / 'calib.txt'}", f"eval.text={tmp_path / 'eval.txt'}"),
        *(f"calib.tokenizer={embedded.__path__[0]}/tokenizer.json", "calib.samples=4", "eval.samples=2"),
    )
    assert done.code == 0, done.err
    assert done.report["calibration"]["tokens"] == 4 * 64
    assert done.report["accuracy"]["tokens"] == 2 * 63


def test_a_model_without_data_is_calibrated_on_text_that_it_draws(jaxq, cache):
    jaxq("method=rtn_dq", "calib.samples=0", "eval.samples=0")
    (path,) = cache.glob("embedded-*.onnx")
    small = ("calib.samples=2", "calib.length=16", "eval.samples=2", "eval.length=16")
    drawn = jaxq("model=onnx", f"model.path={path}", *small)
    assert drawn.code == 0, drawn.err
    assert drawn.report["method"] == "best"
    assert drawn.report["data"]["calibration"]["drawn_share"] == 1
    assert drawn.report["accuracy"]["runtimes"]["level 1"]["kl"] > 0
    done = jaxq("model=onnx", f"model.path={path}", "method=rtn_dq")
    assert done.code == 0, done.err
    assert done.report["accuracy"] == {"not_measured": "no held-out data was given"}
    assert all(layer["loss"] is None and layer["sqnr_db"] > 5 for layer in done.report["layers"])
