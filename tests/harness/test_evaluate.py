"""``jaxq evaluate``: figures, tables, JSON, and a sentence for whatever is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from jaxq import embedded
from jaxq.embedded import build_model
from jaxq.errors import JaxqError
from jaxq.files.model_file import save_model
from jaxq.harness import evaluate, evaluate_command
from tests.support.cached_model import cached_model
from tests.support.encoders import IDS, encoder

TOKENIZER = Path(embedded.__file__).with_name("tokenizer.json")


@pytest.fixture
def tokens(tmp_path) -> Path:
    """Four samples of different words each, one of them with padding."""
    mask = np.ones((4, 12), np.int64)
    mask[1, 9:] = 0
    np.savez(tmp_path / "t.npz", eval=np.random.default_rng(0).integers(0, IDS, (4, 12)), attention_mask=mask)
    return tmp_path / "t.npz"


def test_figures_are_those_of_numpy(jaxq, tmp_path, tokens):
    """Perplexity and its error in float64 from onnxruntime's logits; KL and agreement of a model with itself."""
    a = cached_model(tmp_path / "a.onnx")
    b = cached_model(tmp_path / "b.onnx", cache=False)
    done = jaxq("evaluate", str(a), str(b), "--data", str(tokens), "--against", str(a), "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    first, second = record["models"]
    nll = _losses(b, tokens)
    mean = sum(map(np.sum, nll)) / sum(map(len, nll))
    assert record["tokens"] == second["tokens"] == sum(map(len, nll)) == 3 * 11 + 8
    assert second["perplexity"] == pytest.approx(np.exp(mean), rel=1e-4)
    spread = sum((np.sum(row) - mean * len(row)) ** 2 for row in nll)
    error = np.sqrt(4 / 3 * spread) / record["tokens"]
    assert second["perplexity_error"] == pytest.approx(np.exp(mean) * error, rel=1e-3)
    assert first["kl"] == pytest.approx(0, abs=1e-6) and first["top1"] == 1
    assert first["speed"]["prefill"] > 0 and first["speed"]["decode"] > 0 and first["speed"]["repeats"] > 1
    assert second["speed"]["decode"] is None
    assert first["nbytes"] == a.stat().st_size
    assert "accuracy level" in record["setting"]
    table = jaxq("evaluate", str(a), str(b), "--data", str(tokens), "--against", str(a))
    assert all(words in table.out for words in ("perplexity", "+-", "KL", "top-1", "decode", "accuracy level"))


def _losses(path: Path, tokens: Path) -> list[np.ndarray]:
    """Negative log-likelihoods of the real tokens, for each sample."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays = np.load(tokens)
    losses = []
    for ids, mask in zip(arrays["eval"], arrays["attention_mask"], strict=True):
        row = ids[mask > 0][None]
        feeds = {i.name: row if i.name == "input_ids" else np.ones_like(row) for i in session.get_inputs()}
        logits = np.asarray(session.run(["logits"], feeds)[0], np.float64)[0]
        log_p = (
            logits
            - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - logits.max(-1, keepdims=True)
        )
        losses.append(-log_p[np.arange(row.shape[1] - 1), row[0, 1:]])
    return losses


def _wrong(kind: str, folder: Path, tokens: Path) -> tuple[list[str], str]:
    model = str(cached_model(folder / "model.onnx"))
    (folder / "empty").mkdir()
    (folder / "broken.onnx").write_bytes(b"no model")
    (folder / "text.txt").write_text("one two three " * 200)
    return {
        "path": ([str(folder / "none.onnx")], "does not exist"),
        "folder": ([str(folder / "empty")], "has no model"),
        "file": ([str(folder / "broken.onnx")], "not an ONNX model"),
        "against": ([model, "--against", str(folder / "none")], "does not exist"),
        "data": ([model, "--data", str(folder / "none.txt")], "does not exist"),
        "npz": ([model, "--data", str(folder / "broken.npz")], "does not exist"),
        "tokenizer": ([model, "--data", str(folder / "text.txt")], "tokenizer"),
        "prompt": ([model, "--prompt", "one"], "tokenizer"),
        "kinds": ([model, str(encoder(folder / "e.onnx")), "--data", str(tokens)], "is no language model"),
        "encoder": ([str(encoder(folder / "e.onnx")), "--data", str(tokens)], "--against"),
        "option": ([model, "block_size=32"], "block_size"),
        "unknown": ([model, "eval.sample=3"], "eval.sample"),
        "none": (["eval.samples=3"], "the model is missing"),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["path", "folder", "file", "against", "data", "npz", "tokenizer", "prompt", "kinds", "encoder", "option"]
    + ["unknown", "none"],
)
def test_what_is_wrong_is_one_sentence(jaxq, tmp_path, tokens, kind):
    arguments, words = _wrong(kind, tmp_path, tokens)
    done = jaxq("evaluate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert not any(done.folder.iterdir())


def test_a_tokenizer_of_another_vocabulary_is_refused(jaxq, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    cached_model(folder / "model.onnx")
    shutil.copy(TOKENIZER, folder)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    for arguments in (["--data", str(tmp_path / "text.txt")], ["--prompt", "The quick brown fox"]):
        done = jaxq("evaluate", str(folder), *arguments)
        assert done.code == 2 and f"0 to {IDS - 1}" in done.err and done.err.count("\n") == 1, done.err


def test_text_continues_the_prompt(jaxq, tmp_path):
    save_model(build_model(), tmp_path / "m" / "model.onnx", 1 << 30)
    shutil.copy(TOKENIZER, tmp_path / "m")
    done = jaxq("evaluate", str(tmp_path / "m"), "--prompt", "The value of", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert "The value of" in record["prompt"] and record["models"][0]["text"].strip()
    assert record["models"][0]["perplexity"] is None and record["samples"] == 0


def test_ctrl_c_ends_with_130(jaxq, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_command, "evaluate_models", interrupted)
    done = jaxq("evaluate", str(cached_model(tmp_path / "model.onnx")))
    assert done.code == 130 and done.err.startswith("error: interrupted")


@pytest.mark.parametrize(
    ("arguments", "key"), [(["--against", "float.onnx"], "--against"), (["eval.samples=2"], "eval.samples")]
)
def test_what_needs_data_is_refused_without(arguments, key, monkeypatch):
    monkeypatch.setattr(evaluate, "find_model", lambda path: path)
    against = arguments[1] if key == "--against" else None
    with pytest.raises(JaxqError, match=f"{key} changes nothing without held-out data"):
        evaluate.evaluate_models(["m.onnx"], None, against, settings=[] if against else arguments)
