"""Runs on text that the model wrote itself, and on several texts mixed by share."""

import json

import numpy as np
import pytest

from jaxq.data.mixtures import mix, share_counts
from jaxq.harness import command
from tests.harness.test_bad_input import assert_refused
from tests.support.cached_model import cached_model
from tests.support.encoders import IDS, encoder, with_logits

SMALL = ("block_size=16", "calib.samples=6", "calib.length=12", "eval.samples=5", "eval.length=14")


@pytest.fixture
def model(tmp_path):
    return cached_model(tmp_path / "model.onnx")


@pytest.fixture
def fed(monkeypatch):
    """Token ids of the calibration and of the evaluation, as the run used them."""
    seen = {}

    def record(name, real, position):
        def wrapped(*arguments):
            batches = arguments[position]
            seen[name] = np.concatenate([b.feeds["input_ids"] for b in batches]) if batches else None
            return real(*arguments)

        return wrapped

    monkeypatch.setattr(command, "quantize_model", record("calib", command.quantize_model, 1))
    monkeypatch.setattr(command, "evaluate", record("eval", command.evaluate, 2))
    return seen


def test_auto_without_data_is_best_on_drawn_text(jaxq, model, fed, tmp_path):
    arguments = ("model=onnx", f"model.path={model}", *SMALL, f"cache_dir={tmp_path}/cache")
    done = jaxq(*arguments)
    assert done.code == 0, done.err
    report = done.report
    assert report["method"] == "best"
    assert report["data"]["calibration"] == {
        "sources": "text drawn from the model itself with seed 0 (6 samples)",
        "drawn_share": 1.0,
    }
    assert report["data"]["evaluation"]["sources"] == "text drawn from the model itself with seed 1 (5 samples)"
    assert report["calibration"]["tokens"] == 6 * 12 and report["accuracy"]["tokens"] == 5 * 13
    assert "calibration data: text drawn from the model itself" in done.out
    assert "KL on 65 tokens of drawn text, other seeds" in done.out
    assert "perplexity" not in done.out and "held-out" not in done.out
    assert fed["calib"].shape == (6, 12) and fed["eval"].shape == (5, 14)
    assert not (fed["calib"][:5, None] == fed["eval"][None, :, :12]).all(axis=2).any()

    first = dict(fed)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "drawn").iterdir()}
    again = jaxq(*arguments)
    assert all(p.stat().st_mtime_ns == kept[p] for p in (tmp_path / "cache" / "drawn").iterdir())
    for name in ("calib", "eval"):
        np.testing.assert_array_equal(first[name], fed[name])
    assert again.report["hashes"] == report["hashes"]
    other = jaxq(*arguments[:-1], f"cache_dir={tmp_path}/other")
    assert other.report["hashes"] == report["hashes"]


def test_methods_that_need_data_get_drawn_text_and_rounding_does_without(jaxq, model, fed):
    done = jaxq("model=onnx", f"model.path={model}", *SMALL, "method=awq_lite")
    assert done.code == 0, done.err
    assert done.report["data"]["calibration"]["drawn_share"] == 1
    plain = jaxq("model=onnx", f"model.path={model}", "block_size=16", "method=rtn_dq")
    assert plain.code == 0, plain.err
    assert fed == {"calib": None, "eval": None}
    assert plain.report["data"]["calibration"] == {"sources": "none", "drawn_share": 0}
    assert plain.report["accuracy"] == {"not_measured": "no held-out data was given"}
    measured = jaxq(
        "model=onnx", f"model.path={model}", "block_size=16", *SMALL[3:], "method=rtn_dq", "eval.source=self"
    )
    assert fed["calib"] is None and fed["eval"].shape == (5, 14)
    assert measured.report["accuracy"]["runtimes"]["level 1"]["kl"] > 0


def test_models_that_are_no_language_models_run_as_before(jaxq, tmp_path, fed):
    for path in (encoder(tmp_path / "e.onnx"), with_logits(tmp_path / "b.onnx", causal=False)):
        done = jaxq("model=onnx", f"model.path={path}", *SMALL)
        assert done.code == 0, done.err
        assert done.report["method"] == "rtn_dq" and fed == {"calib": None, "eval": None}
        assert not any("drawn" in note for note in done.report["notes"])
        refused = jaxq("model=onnx", f"model.path={path}", *SMALL, "calib.source=self")
        assert_refused(refused, ["calib.source asks for text drawn", str(path), "no logits of the next token"])
        refused = jaxq("model=onnx", f"model.path={path}", *SMALL, "method=gptq")
        assert_refused(refused, ["gptq needs calibration data", "calib.tokens", "rtn_dq"])


def test_a_model_that_cannot_be_run_is_rounded_and_the_report_says_so(jaxq, tmp_path):
    arguments = ("model=onnx", f"model.path={cached_model(tmp_path / 'm.onnx', nan=True)}", *SMALL)
    done = jaxq(*arguments)
    assert done.code == 0, done.err
    assert done.report["method"] == "rtn_dq"
    reason = "no text can be drawn from the model: its logits are NaN or infinite"
    assert f"the model is rounded to nearest, without drawn text: {reason}" in done.report["notes"]
    assert_refused(jaxq(*arguments, "calib.source=self"), [reason])
    assert_refused(jaxq(*arguments, "method=gptq"), [reason])


def test_drawn_text_beside_real_text(jaxq, model, fed, tmp_path):
    np.savez(tmp_path / "t.npz", calib=np.full((9, 10), 3))
    small = ("block_size=16", "calib.samples=6", "eval.samples=5")
    data = ("model=onnx", f"model.path={model}", *small, f"calib.tokens={tmp_path}/t.npz")
    done = jaxq(*data, "calib.self_share=0.5")
    assert done.code == 0, done.err
    assert (fed["calib"][:3] == 3).all() and fed["calib"].shape == (6, 10) and not (fed["calib"][3:] == 3).all()
    assert done.report["data"]["calibration"] == {
        "sources": f"file '{tmp_path}/t.npz' (3 samples), text drawn from the model itself with seed 0 (3 samples)",
        "drawn_share": 0.5,
    }
    assert fed["eval"] is None
    jaxq(*data, "calib.self_share=1", "eval.length=14")
    assert fed["calib"].shape == (6, 10) and fed["eval"].shape == (5, 14)
    np.savez(tmp_path / "t.npz", calib=np.full((9, 10), 3), attention_mask=np.ones((9, 10), np.int64))
    assert_refused(
        jaxq(*data, "calib.self_share=0.5"), ["calib.self_share is 0.5", "attention_mask", "without padding"]
    )


def test_the_embedded_model_keeps_its_text_and_can_write_its_own(jaxq, fed):
    small = ("calib.samples=2", "calib.length=16", "eval.samples=2", "eval.length=16", "method=rtn_search")
    usual = jaxq(*small)
    assert usual.report["data"]["calibration"]["sources"] == "Python's documentation (2 samples)"
    text = fed["calib"]
    own = jaxq(*small, "calib.source=self")
    assert own.code == 0, own.err
    assert own.report["data"]["calibration"]["drawn_share"] == 1
    assert own.report["data"]["evaluation"]["sources"] == "Python's documentation (2 samples)"
    assert "calibration_text" not in own.report["hashes"]
    assert not (fed["calib"] == text).all()


def test_a_dry_run_estimates_the_drawing_and_draws_nothing(jaxq, model, tmp_path):
    arguments = ("model=onnx", f"model.path={model}", *SMALL, f"cache_dir={tmp_path}/cache", "dry_run=true")
    done = jaxq(*arguments, f"hydra.run.dir={tmp_path}/run")
    assert done.code == 0, done.err
    estimate = json.loads((tmp_path / "run" / "estimate.json").read_text())
    assert estimate["estimate"]["seconds"]["draw text"] > 0
    assert estimate["data"]["calibration"]["sources"].startswith("text would be drawn from the model itself")
    assert "best, int4" in done.out and "calibration data: text would be drawn" in done.out
    assert not (tmp_path / "cache" / "drawn").exists()


def test_texts_are_mixed_by_share(jaxq, fed, tmp_path):
    for name, word in (("a", "alpha "), ("b", "beta "), ("c", "gamma ")):
        (tmp_path / f"{name}.txt").write_text(word * 900)
    calib = ("calib.samples=8", "calib.length=16", "method=rtn_search")
    small = (*calib, "eval.samples=4", "eval.length=16")
    texts = f"calib.text=[{tmp_path}/a.txt,{tmp_path}/b.txt]"
    done = jaxq(*small, texts, "calib.shares=[3,1]", f"eval.text=[{tmp_path}/c.txt]")
    assert done.code == 0, done.err
    a, b = f"text '{tmp_path}/a.txt'", f"text '{tmp_path}/b.txt'"
    assert done.report["data"]["calibration"]["sources"] == f"{a} (6 samples), {b} (2 samples)"
    words = [set(row.tolist()) for row in fed["calib"]]
    assert all(row == words[5] for row in words[1:6]) and words[5] not in words[6:]
    equal = jaxq(*calib, texts, "eval.samples=0")
    assert equal.report["data"]["calibration"]["sources"] == f"{a} (4 samples), {b} (4 samples)"
    held = jaxq(*small, texts, "calib.shares=[1,3]", "eval.holdout_fraction=0.25")
    assert held.code == 0, held.err
    assert [set(row.tolist()) == words[5] for row in fed["eval"]] == [True, False, False, False]
    again = jaxq(*small, texts, f"eval.text=[{tmp_path}/c.txt,{tmp_path}/b.txt]")
    assert_refused(again, ["b.txt' is also calibration text"])
    own = jaxq(*calib, texts, "calib.self_share=0.25", "eval.samples=0")
    assert own.report["data"]["calibration"]["sources"].endswith("drawn from the model itself with seed 0 (2 samples)")


def test_shares():
    assert share_counts([1, 1], 3) == [2, 1]
    assert share_counts([0.1, 0.9], 4) == [0, 4]
    assert sum(share_counts([0.3, 0.3, 0.4], 32)) == 32
    rows = np.arange(6)[:, None]
    few, many = mix([rows[:2], rows], [1, 1], 8)
    assert len(few) == 2 and len(many) == 4


WRONG = {
    "another source": (["calib.source=me"], ["calib.source is 'me': give self"]),
    "two sources": (["calib.source=self", "calib.text=a"], ["calib.text and calib.source are given"]),
    "two sources of the evaluation": (["eval.source=self", "eval.text=a"], ["eval.text and eval.source are given"]),
    "no samples": (["calib.source=self", "calib.samples=0"], ["calib.source is self, but calib.samples is 0"]),
    "a share above 1": (["calib.text=a", "calib.self_share=1.5"], ["calib.self_share is 1.5", "from 0 to 1"]),
    "a negative share": (["calib.text=a", "calib.self_share=-0.5"], ["calib.self_share is -0.5"]),
    "a share of nothing": (
        ["calib.self_share=0.5"],
        ["calib.self_share is 0.5 without other data", "calib.source=self"],
    ),
    "a share of no samples": (["calib.text=a", "calib.self_share=0.5", "calib.samples=0"], ["but calib.samples is 0"]),
    "a share of drawn text": (["calib.source=self", "calib.self_share=0.5"], ["calib.source=self draws all text"]),
    "more shares than texts": (["calib.text=[a,b]", "calib.shares=[1,2,3]"], ["[1,2,3] for 2 texts", "[3,1]"]),
    "shares of one text": (["calib.text=a", "calib.shares=[1]"], ["calib.shares is [1], and one text is given"]),
    "shares of no text": (["calib.shares=[1,2]"], ["calib.shares is [1,2], and no texts are given"]),
    "a share of 0": (["calib.text=[a,b]", "calib.shares=[1,0]"], ["calib.shares is [1,0]: give positive numbers"]),
    "an empty list": (["calib.text=[]"], ["calib.text is []: give a path"]),
    "nothing in a list": (["calib.text=[a,null]"], ["calib.text is [a,null]: give a path"]),
}


@pytest.mark.parametrize("row", WRONG)
def test_wrong_options(jaxq, model, row):
    arguments, words = WRONG[row]
    assert_refused(jaxq("model=onnx", f"model.path={model}", "block_size=16", *arguments), words)


def test_ids_are_those_of_the_model(jaxq, model, fed):
    jaxq("model=onnx", f"model.path={model}", *SMALL, "method=rtn_search", "calib.source=self")
    assert fed["calib"].min() >= 0 and fed["calib"].max() < IDS
