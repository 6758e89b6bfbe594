"""From files to inputs of a model: masks, caches, odd files; and models that have no logits."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx
import pytest

from jaxq.data.texts import load_tokenizer, read_text, token_rows
from jaxq.data.token_files import token_file_samples
from jaxq.errors import JaxqError
from jaxq.evaluation.accuracy import evaluate
from jaxq.evaluation.outputs import OutputComparison
from jaxq.runtime.inputs import InputSpec, ModelInput, to_batches

ROOT = Path(__file__).parents[2]
INT = np.dtype(np.int64)
TOKENS = ("batch", "sequence")
SPEC = InputSpec((ModelInput("input_ids", INT, TOKENS), ModelInput("attention_mask", INT, TOKENS)), vocabulary=100)


def test_a_mask_beside_the_tokens_is_used(tmp_path):
    mask = np.ones((4, 8), int)
    mask[:, 5:] = 0
    np.savez(tmp_path / "t.npz", calib=np.ones((4, 8), int), attention_mask=mask)
    arrays = token_file_samples(tmp_path / "t.npz", "calib", samples=3, spec=SPEC)
    (batch,) = to_batches(arrays, SPEC, batch_size=8)
    assert batch.keep is not None
    assert batch.keep.sum() == 3 * 5
    np.testing.assert_array_equal(batch.feeds["attention_mask"], mask[:3])


def test_a_mask_of_another_shape_is_refused():
    arrays = {"input_ids": np.ones((4, 8), int), "attention_mask": np.ones((4, 6), int)}
    with pytest.raises(JaxqError, match=r"\[4, 6\].*\[4, 8\]"):
        to_batches(arrays, SPEC, batch_size=2)


@pytest.mark.parametrize("tokens", ["calib", "input_ids"])
def test_a_mask_that_the_model_does_not_want_tells_the_padding(tokens, tmp_path):
    mask = np.ones((2, 10), int)
    mask[0, 6:] = 0
    arrays: dict[str, Any] = {tokens: np.ones((2, 10), int), "attention_mask": mask}
    np.savez(tmp_path / "t.npz", **arrays)
    spec = InputSpec(SPEC.inputs[:1], None)
    arrays = token_file_samples(tmp_path / "t.npz", "calib", samples=2, spec=spec)
    (batch,) = to_batches(arrays, spec, batch_size=2)
    assert set(batch.feeds) == {"input_ids"}
    assert batch.keep is not None
    np.testing.assert_array_equal(batch.keep, mask)


@pytest.mark.parametrize("tokens", ["calib", "input_ids"])
def test_other_inputs_beside_the_tokens_are_fed(tokens, tmp_path):
    """And the other part's token ids may lie there."""
    past = ModelInput("past_key_values.0.key", np.dtype(np.float32), ("batch", 3, "past", 16))
    others = [ModelInput(name, INT, TOKENS) for name in ("position_ids", "token_type_ids")]
    spec = InputSpec((*SPEC.inputs, *others, past), 100)
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {name: rng.integers(0, 9, (4, 8)) for name in ("position_ids", "token_type_ids")}
    given[past.name] = rng.normal(size=(4, 3, 5, 16)).astype(np.float32)
    ids: dict[str, Any] = {tokens: np.ones((4, 8), int), "eval": np.ones((2, 9), int)}
    np.savez(tmp_path / "t.npz", **ids, **given)
    arrays = token_file_samples(tmp_path / "t.npz", "calib", samples=3, spec=spec)
    (batch,) = to_batches(arrays, spec, batch_size=3)
    for name, array in given.items():
        np.testing.assert_array_equal(batch.feeds[name], array[:3])


@pytest.mark.parametrize("tokens", ["calib", "input_ids"])
def test_names_that_nothing_reads_are_refused(tokens, tmp_path):
    arrays: dict[str, Any] = {tokens: np.ones((4, 8), int), "attention_masks": np.ones((4, 8), int)}
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(JaxqError, match=r"has attention_masks, which nothing reads.*input_ids, attention_mask"):
        token_file_samples(tmp_path / "t.npz", "calib", samples=2, spec=SPEC)


def test_token_ids_that_are_there_twice_are_refused(tmp_path):
    np.savez(tmp_path / "t.npz", calib=np.ones((4, 8), int), input_ids=np.zeros((4, 8), int))
    with pytest.raises(JaxqError, match="token ids in 'calib' and in 'input_ids'"):
        token_file_samples(tmp_path / "t.npz", "calib", samples=2, spec=SPEC)


ODD = {"two": 2, "minus one": -1, "a half": 0.5, "NaN": np.nan, "text": "1"}


@pytest.mark.parametrize("wanted", [True, False], ids=["wanted", "not wanted"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_mask_of_other_values_is_refused(odd, wanted):
    spec = SPEC if wanted else InputSpec(SPEC.inputs[:1], 100)
    mask = np.array([["1" if isinstance(odd, str) else 1] * 7 + [odd]] * 2)
    with pytest.raises(JaxqError, match="attention_mask has values other than 0 and 1"):
        to_batches({"input_ids": np.ones((2, 8), int), "attention_mask": mask}, spec, batch_size=2)
    (batch,) = to_batches({"input_ids": np.ones((2, 8), int), "attention_mask": np.eye(2, 8) > 0}, spec, batch_size=2)
    assert batch.keep is not None and batch.keep.sum() == 2


def test_an_empty_cache_is_an_input_like_others():
    past = ModelInput("past_key_values.0.key", np.dtype(np.float32), ("batch", 3, "past", 16))
    spec = InputSpec((*SPEC.inputs, past), None)
    arrays = {"input_ids": np.ones((2, 8), int), past.name: np.zeros((2, 3, 0, 16), np.float32)}
    (batch,) = to_batches(arrays, spec, batch_size=2)
    assert batch.feeds[past.name].shape == (2, 3, 0, 16)


def test_ids_beyond_the_models_type_are_refused():
    spec = InputSpec((ModelInput("input_ids", np.dtype(np.int32), TOKENS),), None)
    with pytest.raises(JaxqError, match="int32"):
        to_batches({"input_ids": np.full((1, 4), 2**40)}, spec, batch_size=1)


def test_files_that_are_no_npz(tmp_path):
    np.save(tmp_path / "one.npy", np.ones((2, 8), int))
    np.savez(tmp_path / "number.npz", calib=np.int64(3))
    (tmp_path / "text.npz").write_text("1 2 3 4\n")
    (tmp_path / "folder").mkdir()
    with ZipFile(tmp_path / "zip.npz", "w") as file:
        file.writestr("notes.txt", "no array")
    for name, words in (
        ("one.npy", r"one.npy' is not an \.npz file .*numpy\.savez\(path, calib=ids\)$"),
        ("text.npz", r"text.npz' is not an \.npz file .*numpy\.savez\(path, calib=ids\)$"),
        ("folder", "is a folder: give the path of an .npz file"),
        ("zip.npz", "has 'notes.txt', which is no array"),
        ("number.npz", "single number"),
    ):
        with pytest.raises(JaxqError, match=words):
            token_file_samples(tmp_path / name, "calib", samples=2, spec=SPEC)


def test_samples_without_tokens_are_refused():
    with pytest.raises(JaxqError, match=r"'input_ids' has shape \[3, 0\]: give at least one token"):
        to_batches({"input_ids": np.ones((3, 0), int)}, SPEC, batch_size=2)


def test_a_tokenizer_that_cuts_off_does_not_cut_the_text(tmp_path):
    from jaxq import embedded

    tokenizer = embedded.load_tokenizer()
    tokenizer.enable_truncation(16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("A list is a mutable sequence of objects. " * 50)
    rows = token_rows(read_text(tmp_path / "text.txt"), load_tokenizer(tmp_path / "tokenizer.json"), 32, "text")
    assert len(rows) >= 3


@pytest.mark.parametrize("shape", [["b", 1, 8], ["b", "s", 8]], ids=["last token alone", "hidden states"])
def test_outputs_that_are_no_logits_are_compared_as_they_are(shape, tmp_path):
    """One row of logits a sample; or states of 8 numbers where ids go up to 9."""
    table = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32), "table")
    nodes = [onnx.helper.make_node("Gather", ["table", "input_ids"], ["x"])]
    if shape[1] == 1:
        nodes.append(onnx.helper.make_node("ReduceMean", ["x"], ["out"], axes=[1], keepdims=1))
    else:
        nodes.append(onnx.helper.make_node("Identity", ["x"], ["out"]))
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "s"])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph(nodes, "g", [ids], [out], [table])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "m.onnx",
    )
    spec = InputSpec((ModelInput("input_ids", INT, TOKENS),), 10)
    batches = to_batches({"input_ids": np.arange(10)[None]}, spec, batch_size=1)
    found = evaluate(tmp_path / "m.onnx", tmp_path / "m.onnx", batches)
    assert isinstance(found, OutputComparison)
    assert found.outputs[0].runtimes["level 1"].relative_error == 0


def test_a_checkout_that_is_not_installed_runs(tmp_path):
    """Without the package's metadata, as in a clone on PYTHONPATH."""
    script = (
        "import importlib.metadata as m, sys\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'jaxq': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import jaxq.run; jaxq.run.main()\n"
    )
    arguments = ["method=rtn_dq", "calib.samples=0", "eval.samples=0", f"cache_dir={tmp_path}/cache"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_onnxruntime_is_one_sentence(tmp_path):
    script = "import sys; sys.modules['onnxruntime'] = None\nimport jaxq.run; jaxq.run.main()"
    arguments = [f"cache_dir={tmp_path}/cache", "calib.samples=2", "calib.length=16", "eval.samples=0"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: onnxruntime is not installed")
    assert done.stderr.count("\n") == 1
