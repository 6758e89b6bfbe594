"""`jaxq.quantize` and `jaxq.evaluate`: whole runs from Python."""

import json
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import jaxq
from jaxq import embedded
from jaxq.data.texts import load_tokenizer
from jaxq.embedded import build_model, documents
from jaxq.errors import JaxqError
from jaxq.evaluation.accuracy import Evaluation
from jaxq.files.model_file import save_model
from jaxq.harness.text_sample import escaped
from tests.support.encoders import encoder

SMALL = ("calib.samples=2", "calib.length=32", "eval.samples=2", "eval.length=32")
TEXTS = {"text after": "prompt", "float": "float_text", "quantized": "quantized_text"}


@pytest.fixture
def model(tmp_path, monkeypatch, cache) -> Path:
    """The embedded model as a file, with its tokenizer beside it."""
    monkeypatch.setenv("JAXQ_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    save_model(build_model(), folder / "model.onnx", 1 << 30)
    shutil.copy(Path(embedded.__file__).with_name("tokenizer.json"), folder)
    return folder / "model.onnx"


def ids(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 2000, (2, 32))


def test_a_run_and_its_evaluation(model, tmp_path, capfd):
    """Arrays in, files and frozen figures out, nothing printed, and the same configuration as on the command line."""
    options = ["block_size=32", "eval.samples=2"]
    result = jaxq.quantize(model, tmp_path / "out", method="rtn", held_out=ids(1), options=options)
    assert (result.method, result.folder, result.model) == ("rtn", tmp_path / "out", tmp_path / "out" / "model.onnx")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "block_size=32" in report["overrides"] and "preset=deploy" in report["overrides"]
    assert report["size"]["target_bytes"] == result.outcome.target_bytes == result.model.stat().st_size
    assert isinstance(result.evaluation, Evaluation)
    assert report["accuracy"]["runtimes"]["level 1"]["kl"] == result.evaluation.runtimes["level 1"].kl > 0
    with pytest.raises(FrozenInstanceError):
        result.method = "best"  # pyright: ignore[reportAttributeAccessIssue]
    judged = jaxq.evaluate([model, result.model], ids(1), against=model, options=["eval.samples=1"])
    assert (judged.samples, judged.tokens, judged.data) == (1, 31, "token ids")
    assert judged.models[0].kl == pytest.approx(0, abs=1e-6) and judged.models[0].top1 == 1
    assert (judged.models[1].kl or 0) > 1e-4
    assert judged.models[1].nbytes == result.outcome.target_bytes
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    with pytest.raises(jaxq.JaxqError, match="changes nothing with method=rtn: leave it out, or the data"):
        jaxq.quantize(model, tmp_path / "other", method="rtn", data=ids(), held_out=ids(1), options=options)
    assert not (tmp_path / "other").exists()


def test_texts_are_calibration_data_of_which_a_fifth_is_held_out(model, tmp_path):
    texts = [document.text for document in documents("calib")[:3]]
    result = jaxq.quantize(str(model), str(tmp_path / "out"), "rtn", texts, options=SMALL)
    overrides = json.loads((tmp_path / "out" / "report.json").read_text())["overrides"]
    assert "eval.holdout_fraction=0.2" in overrides
    assert result.outcome.tokens == 2 * 32
    assert isinstance(result.evaluation, Evaluation) and 0 < result.evaluation.tokens <= 2 * 31
    judged = jaxq.evaluate(result.folder, texts[:1], options=SMALL[2:])
    assert judged.data == "1 texts"
    assert judged.models[0].text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "bset"}, "bset"),
        ({"options": ["block=32"]}, "block"),
        ({"options": "block_size=32"}, r"options=\['block_size=32'\]"),
        ({"options": ["dry_run=true"]}, "dry_run"),
        ({"preset": "small"}, "deploy"),
        ({"data": "nowhere/"}, "nowhere"),
        ({"data": np.zeros((2, 32))}, "float64 of shape"),
        ({"data": np.zeros(32, np.int64)}, r"\[32\]"),
        ({"data": []}, "token ids"),
        ({"data": [[1, 2], [3]]}, "token ids"),
        ({"data": np.full((2, 32), 5000)}, "5000"),
        ({"output": "in"}, "never changed"),
    ],
)
def test_wrong_calls_of_quantize_are_refused_and_leave_nothing(model, tmp_path, arguments, words):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(jaxq.JaxqError, match=words):
        jaxq.quantize(model, arguments.pop("output", "out"), **arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_encoder_is_compared_by_its_outputs(tmp_path):
    """The figures are those of numpy on what onnxruntime computes."""
    paths = [encoder(tmp_path / "a.onnx"), encoder(tmp_path / "b.onnx", seed=1, noise=0.05)]
    rows = np.random.default_rng(0).integers(0, 40, (4, 8))
    result = jaxq.evaluate(paths[1], rows, against=paths[0])
    a, b = (_first_output(path, rows) for path in paths)
    output = result.models[0].outputs[0].runtimes["as given"]
    assert result.models[0].perplexity is None and result.models[0].speed is None and result.prompt is None
    assert output.relative_error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-4)
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    cosines = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert output.cosine == pytest.approx(cosines.mean(), rel=1e-5)
    with pytest.raises(jaxq.JaxqError, match="--against"):
        jaxq.evaluate(paths[1], rows)
    with pytest.raises(jaxq.JaxqError, match="no tokenizer"):
        jaxq.evaluate(paths[1], rows, against=paths[0], prompt="x")
    shutil.copy(Path(embedded.__file__).with_name("tokenizer.json"), tmp_path)
    with pytest.raises(jaxq.JaxqError, match="no language model"):
        jaxq.evaluate(paths[1], rows, against=paths[0], prompt="x")


def _first_output(path: Path, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_outputs()[0].name
    return np.asarray(session.run([name], {"input_ids": rows, "attention_mask": np.ones_like(rows)})[0], np.float64)


def test_the_report_has_text_of_both_models(jaxq):
    """Greedy text, as onnxruntime's logits of whole rows give it."""
    done = jaxq("method=rtn_dq", "dtype=int2", "block_size=128", "form=dq", *SMALL)
    assert done.code == 0, done.err
    sample = done.report["sample"]
    assert sample["float_text"] != sample["quantized_text"]
    assert all(f"{name}: {escaped(sample[key])}" in done.out for name, key in TEXTS.items())
    encoder = load_tokenizer(Path(embedded.__file__).with_name("tokenizer.json"))
    tokens = encoder.encode(sample["prompt"], add_special_tokens=False).ids
    session = onnxruntime.InferenceSession(str(done.run_folder / "model.onnx"), providers=["CPUExecutionProvider"])
    start = len(tokens)
    for _ in range(40):
        rows = np.array([tokens])
        logits = session.run(["logits"], {"input_ids": rows, "attention_mask": np.ones_like(rows)})[0]
        tokens.append(int(np.asarray(logits)[0, -1].argmax()))
    assert encoder.decode(tokens[start:], skip_special_tokens=False)[:20] == sample["quantized_text"][:20]
    without = jaxq("method=rtn_dq", "eval.samples=0", *SMALL[:2])
    assert without.report["sample"] is None and "text after" not in without.out


def test_what_is_no_path_is_refused_by_name():
    with pytest.raises(JaxqError, match="model is of type int: give a path"):
        jaxq.quantize(5, "out")  # pyright: ignore[reportArgumentType]
    with pytest.raises(JaxqError, match="against is of type float: give a path"):
        jaxq.evaluate("m.onnx", against=0.5)  # pyright: ignore[reportArgumentType]
