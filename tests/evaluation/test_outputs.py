"""Models that are no language models: how they are recognized, and their cosines and relative errors."""

import csv
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from jaxq.evaluation.accuracy import Evaluation, evaluate, is_language_model
from jaxq.evaluation.outputs import OutputComparison, compare_rows, output_rows
from jaxq.files.model_file import load_model
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import read_input_spec, to_batches
from jaxq.runtime.session import session
from tests.support.encoders import HIDDEN, IDS, encoder, figures, save, with_logits

RNG = np.random.default_rng(0)


def _padded(samples: int = 6, length: int = 12) -> dict[str, np.ndarray]:
    mask = np.ones((samples, length), np.int64)
    for i in range(samples):
        mask[i, length - i :] = 0  # the first has none
    return {"input_ids": np.random.default_rng(1).integers(0, IDS, (samples, length)), "attention_mask": mask}


def test_sums_are_those_of_numpy():
    a = RNG.normal(size=(40, 16)).astype(np.float32)
    b = a + 0.3 * RNG.normal(size=a.shape).astype(np.float32)
    a[3] = 0
    b[4] = 0
    keep = (np.arange(40) < 33).astype(np.float32)
    sums = np.asarray(compare_rows(a, b, keep), np.float64)
    mean, least, error = figures(a[:33], b[:33])
    assert sums[:5].tolist() == [33, 1, 0, 0, 32]
    np.testing.assert_allclose(sums[5] / sums[4], mean, rtol=1e-6)
    np.testing.assert_allclose(sums[6], least, atol=1e-6)
    np.testing.assert_allclose(np.sqrt(sums[7] / sums[8]), error, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_cosines_of_tiny_and_huge_rows(scale):
    a = RNG.normal(size=(5, 8)).astype(np.float32)
    b = a + 0.5 * RNG.normal(size=a.shape).astype(np.float32)
    sums = np.asarray(compare_rows(a * np.float32(scale), b * np.float32(scale), np.ones(5, np.float32)))
    np.testing.assert_allclose(sums[5] / sums[4], figures(a, b)[0], rtol=1e-5)


def test_rows_that_are_not_finite_are_counted_and_left_out():
    a = RNG.normal(size=(6, 8)).astype(np.float32)
    b = a + np.float32(0.1)
    a[0, 0], b[0, 0] = -np.inf, -np.inf
    b[1, 2] = np.nan
    sums = np.asarray(compare_rows(a, b, np.ones(6, np.float32)), np.float64)
    assert sums[:5].tolist() == [5, 0, 1, 1, 4]
    np.testing.assert_allclose(np.sqrt(sums[7] / sums[8]), figures(a[2:], b[2:])[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "matrix", "real"),
    [
        ((2, 3, 8), (6, 8), 4),
        ((6, 8), (6, 8), 4),
        ((2, 8), (2, 8), 2),
        ((2,), (1, 2), 1),
        ((), (1, 1), 1),
        ((2, 3, 4, 4), (2, 48), 2),
        ((2, 5, 8), (10, 8), 10),
    ],
)
def test_rows_of_outputs_of_every_rank(shape, matrix, real):
    keep = np.array([[1, 1, 1], [1, 0, 0]])
    rows_and_features, mask = output_rows(shape, keep)
    assert (rows_and_features, mask.sum()) == (matrix, real)


def test_an_encoder_is_judged_by_its_outputs_on_real_tokens(tmp_path):
    """Against onnxruntime's outputs and numpy in float64."""
    paths = [encoder(tmp_path / "a.onnx"), encoder(tmp_path / "b.onnx", noise=0.1)]
    data = _padded()
    batches = to_batches(data, read_input_spec(load_model(paths[0])), batch_size=4)
    result = evaluate(paths[0], paths[1], batches)
    assert isinstance(result, OutputComparison)
    assert result.samples == 6
    assert result.not_compared.keys() == {"labels", "present.0.key"}
    names = ["last_hidden_state", "pooler_output"]
    a, b = (onnxruntime.InferenceSession(path).run(names, data) for path in paths)
    real = data["attention_mask"].astype(bool)
    for output, x, y in zip(result.outputs, a, b, strict=True):
        x, y = (v[real] if v.ndim == 3 else v for v in (np.asarray(x), np.asarray(y)))  # noqa: PLW2901
        assert output.rows == len(x)
        for error in output.runtimes.values():
            np.testing.assert_allclose((error.cosine, error.cosine_min, error.relative_error), figures(x, y), rtol=1e-5)
    assert [output.name for output in result.outputs] == names


@pytest.mark.parametrize("causal", [True, False])
def test_only_causal_models_are_language_models(tmp_path, causal):
    path = with_logits(tmp_path / "m.onnx", causal)
    batch = Batch({"input_ids": np.random.default_rng(2).integers(0, IDS, (2, 9))})
    assert is_language_model(session(path), "logits", batch) == causal
    result = evaluate(path, path, [batch])
    assert isinstance(result, Evaluation if causal else OutputComparison)


def test_states_of_a_causal_model_are_no_logits(tmp_path):
    """As wide as the ids at hand, but narrower than the vocabulary."""
    path = with_logits(tmp_path / "m.onnx", causal=True)
    model = onnx.load(path)
    model.graph.node[-1].CopyFrom(helper.make_node("Identity", ["y"], ["states"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("states", TensorProto.FLOAT, ["b", "s", HIDDEN]))
    onnx.save(model, path)
    result = evaluate(path, path, [Batch({"input_ids": np.arange(10)[None]})])
    assert isinstance(result, OutputComparison)


def test_a_single_token_id_and_padding_do_not_make_a_model_causal(tmp_path):
    path = with_logits(tmp_path / "m.onnx", causal=False)
    keep = np.array([[1, 1, 1, 0]])
    assert not is_language_model(session(path), "logits", Batch({"input_ids": np.full((1, 4), 5)}, keep))


def test_a_model_without_a_float_output_says_so(tmp_path):
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])
    out = helper.make_tensor_value_info("labels", TensorProto.INT64, ["b", "s"])
    path = save(tmp_path / "m.onnx", [helper.make_node("Identity", ["input_ids"], ["labels"])], [ids], [out], {})
    result = evaluate(path, path, [Batch({"input_ids": np.ones((1, 4), np.int64)})])
    assert isinstance(result, str)
    assert "no output to compare: labels is of type INT64" in result


def test_an_images_model_runs_from_npz_files(jaxq, tmp_path):
    """Inputs under their names; every figure in the report is onnxruntime's on the files."""
    rng = np.random.default_rng(5)
    w = rng.normal(size=(48, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["embedding"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["b", 3, 4, 4])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", 32])
    path = save(tmp_path / "i.onnx", nodes, [pixels], [out], {"w": w, "shape": np.array([-1, 48], np.int64)})
    for name in ("calib", "eval"):
        np.savez(tmp_path / f"{name}.npz", pixels=rng.normal(size=(20, 3, 4, 4)).astype(np.float32))
    data = [f"calib.tokens={tmp_path / 'calib.npz'}", f"eval.tokens={tmp_path / 'eval.npz'}"]
    done = jaxq("model=onnx", f"model.path={path}", "block_size=16", *data)
    assert done.code == 0, done.err
    (output,) = done.report["accuracy"]["outputs"]
    held_out = {"pixels": np.load(tmp_path / "eval.npz")["pixels"]}
    a = onnxruntime.InferenceSession(path).run(None, held_out)[0]
    b = onnxruntime.InferenceSession(done.run_folder / "model.onnx").run(None, held_out)[0]
    error = output["runtimes"]["default"]["relative_error"]
    assert 0.01 < error < 0.3
    np.testing.assert_allclose(error, figures(np.asarray(a), np.asarray(b))[2], rtol=1e-3)
    again = jaxq("model=onnx", f"model.path={path}", "block_size=16", data[0], data[1].replace("eval.npz", "calib.npz"))
    assert again.code == 2
    assert "all evaluation samples are calibration samples" in again.err


@pytest.mark.long
def test_a_sweep_shows_cosines_and_errors(jaxq, tmp_path):
    path = encoder(tmp_path / "a.onnx")
    rng = np.random.default_rng(6)
    calib, held_out = (rng.integers(0, IDS, (8, 12)) for _ in range(2))
    held_out[0] = calib[3]
    np.savez(tmp_path / "t.npz", calib=calib, eval=held_out)
    arguments = ("-m", "model=onnx", f"model.path={path}", f"calib.tokens={tmp_path / 't.npz'}", "block_size=16")
    done = jaxq(*arguments, "method=rtn_dq,awq_lite", "scale_dtype=null,float8")
    assert done.code == 0, done.err
    assert "int4 in blocks of 16 with float8_e4m3fn scales" in done.out
    assert "last_hidden_state: mean cosine" in done.out
    assert "not compared: present.0.key, a cache for the next call" in done.out
    assert "1 of 8 evaluation samples are calibration samples too" in done.out
    assert "smallest" in done.out
    (summary,) = done.folder.glob("outputs/**/summary.csv")
    rows = list(csv.DictReader(summary.open()))
    reports = [
        json.loads((summary.parent / name).read_text())
        for name in sorted(str(p.relative_to(summary.parent)) for p in summary.parent.glob("*/report.json"))
    ]
    for row, report in zip(rows, reports, strict=True):
        errors = [o["runtimes"]["level 1"]["relative_error"] for o in report["accuracy"]["outputs"]]
        assert float(row["relative_error"]) == max(errors)
        assert 0.9 < float(row["cosine_min"]) <= float(row["cosine"]) <= 1
        assert row["perplexity"] == ""
    assert [row["scale_dtype"] for row in rows] == 2 * ["float32", "float8_e4m3fn"]
    for row, path in zip(rows, sorted(summary.parent.glob("*/layers.csv")), strict=True):
        with path.open() as file:
            assert {layer["scale_dtype"] for layer in csv.DictReader(file)} == {row["scale_dtype"]}
    assert " scales " in done.out[done.out.rindex("\nsweep") :]


def test_a_zero_output_has_no_cosine_and_says_so(jaxq, tmp_path):
    path = encoder(tmp_path / "z.onnx")
    model = onnx.load(path)
    table = next(t for t in model.graph.initializer if t.name == "table")
    array = onnx.numpy_helper.to_array(table).copy()
    array[:] = 0
    table.CopyFrom(onnx.numpy_helper.from_array(array, "table"))
    onnx.save(model, path)
    np.savez(tmp_path / "t.npz", eval=np.arange(24).reshape(2, 12))
    arguments = ("method=rtn_dq", "calib.samples=0", f"eval.tokens={tmp_path / 't.npz'}", "block_size=16")
    done = jaxq("model=onnx", f"model.path={path}", *arguments)
    assert done.code == 0, done.err
    assert "last_hidden_state: 24 of 24 rows are zero" in done.out
    assert done.report["accuracy"]["outputs"][0]["runtimes"]["level 1"]["cosine"] is None
    assert done.report["accuracy"]["outputs"][0]["runtimes"]["level 1"]["relative_error"] == 0
