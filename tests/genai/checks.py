"""What has to hold of a run on a builder's folder, made here or built on the spot."""

import json
from pathlib import Path

import numpy as np

from jaxq.files.model_file import PROTOBUF_LIMIT, load_model, save_model
from jaxq.readback.float_model import float_model
from jaxq.readback.weights import read_weights
from tests.genai.folders import VOCABULARY, batch, generate, logits, random_ids


def run_jaxq(jaxq, path: Path, tmp_path: Path, *arguments: str):
    """A run with calibration and evaluation data whose padding lies on either side."""
    mask = np.ones((4, 24), np.int64)
    mask[1, :7], mask[2, 20:] = 0, 0
    np.savez(tmp_path / "t.npz", calib=random_ids(4, 24), eval=random_ids(4, 24, seed=1), attention_mask=mask)
    data = (f"model.path={path}", f"calib.tokens={tmp_path / 't.npz'}", "method.alpha_step=0.25")
    done = jaxq("model=onnx", *data, "method=awq_lite", "block_size=32", *arguments)
    assert done.code == 0, done.err
    return done


def check_run(done, source: Path, weights: int, tmp_path: Path, tolerance: float) -> None:
    """The report, the weights, and the file against the float model on the weights that its bytes stand for."""
    report, folder = done.report, done.run_folder
    level_1 = report["accuracy"]["runtimes"]["level 1"]
    assert report["accuracy"]["tokens"] == 23 + 16 + 19 + 23
    assert report["accuracy"]["float_perplexity"] > 1 and np.isfinite(level_1["perplexity"]) and 0 < level_1["kl"] < 1
    assert report["calibration"]["tokens"] == 24 + 17 + 20 + 24
    assert len(report["layers"]) == weights
    assert all(0 < layer["relative_output_error"] < 0.4 for layer in report["layers"])

    target = folder / "model.onnx"
    model = load_model(target)
    assert len(read_weights(model)) == weights
    float_model(model)
    save_model(model, tmp_path / "dequantized" / "model.onnx", PROTOBUF_LIMIT)
    fed = batch(source, random_ids(2, 20, seed=2))
    expected, got = logits(tmp_path / "dequantized" / "model.onnx", fed), logits(target, fed)
    spread = expected.std()
    assert np.abs(got - expected).max() < tolerance * spread
    assert 1e-3 * spread < np.abs(got - logits(source, fed)).mean() < spread  # quantized, and still that model


def check_folder(source: Path, folder: Path) -> None:
    """All that lay beside the model lies beside the copy, byte for byte."""
    beside = {p.name for p in source.parent.iterdir() if p.name not in (source.name, f"{source.name}.data")}
    own = {"model.onnx", "report.json", "layers.csv", "run.log"}
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == beside | own
    for name in beside - {"genai_config.json"}:
        assert (folder / name).read_bytes() == (source.parent / name).read_bytes()
    before, after = (json.loads((f / "genai_config.json").read_text()) for f in (source.parent, folder))
    assert after["model"]["decoder"].pop("filename") == "model.onnx"
    assert before["model"]["decoder"].pop("filename") == source.name
    assert before == after


def check_generation(source: Path, folder: Path) -> None:
    """onnxruntime-genai generates tokens from the copy; the first is one of the file's own most likely ones."""
    prompt = "A list is a mutable"
    length = len(generate(source.parent, prompt, 0))
    before, after = generate(source.parent, prompt), generate(folder, prompt)
    assert length > 3
    assert before[:length] == after[:length]
    assert length < len(after) <= length + 16
    assert all(0 <= i < VOCABULARY for i in after)
    target = folder / "model.onnx"
    fed = batch(target, np.array([after[:length]]))
    likely = np.argsort(logits(target, fed)[0, -1])[-3:]  # its runtime rounds activations
    assert after[length] in likely
