"""Bad input: one sentence that names the offending value, exit code 2, no traceback, nothing half-written."""

import errno
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.files import model_file
from jaxq.harness import command

QUICK = ("calib.samples=2", "calib.length=16", "eval.samples=0")

CONFIG_ROWS = {
    "misspelt option": (["blok_size=128"], ["'blok_size'", "'block_size'"]),
    "misspelt knob": (["method.alpha_stepp=0.1"], ["'method.alpha_stepp'", "'method.alpha_step'"]),
    "added option": (["+nonsense=1"], ["'nonsense'"]),
    "added knob": (["+method.nonsense=1"], ["'method.nonsense'"]),
    "unknown method": (["method=awq_ligth"], ["'awq_ligth'", "awq_lite", "rtn_dq"]),
    "unknown model": (["model=llama"], ["'llama'", "embedded", "onnx"]),
    "unknown form": (["form=tensorrt"], ["'tensorrt'", "dq", "qdq"]),
    "block size 0": (["block_size=0"], ["block_size is 0", "2 rows or more"]),
    "blocks of one number": (["block_size=1"], ["block_size is 1: ", "2 rows or more"]),
    "block size text": (["block_size=large"], ["large", "Integer"]),
    "bits of a dtype": (["dtype=int9"], ["dtype 'int9'", "int8"]),
    "NVFP4 in other blocks": (["method=nvfp4", "block_size=32"], ["block_size is 32", "nvfp4 has blocks of 16"]),
    "a form that holds no integers": (["form=portable"], ["'portable' does not support int4", "form=dq or qdq"]),
    "a form that holds integers": (
        ["dtype=mxfp8", "form=dq"],
        ["'dq' does not support mxfp8", "form=mx_standard"],
    ),
    "negative scales": (["form=trt", "method.full_range=true"], ["'trt' supports positive scales only"]),
    "type of scales": (["scale_dtype=int8"], ["scale_dtype is 'int8'", "float32, float16, float8"]),
    "narrow scales": (["form=trt", "scale_dtype=float16"], ["form 'trt' stores scales", "leave scale_dtype out"]),
    "scales that NVFP4 lacks": (["dtype=nvfp4", "scale_dtype=float8"], ["scale_dtype is 'float8'", "nvfp4", "out"]),
    "tables": (
        ["method=nvfp4", "gather.axis=1"],
        [
            "'portable' does not support tables of Gather",
            "no form supports nvfp4 and tables of int4 blocked along axis 1 in one",
        ],
    ),
    "tables in NVFP4": (
        ["gather.axis=1", "gather.dtype=nvfp4"],
        ["'dq' does not support nvfp4", "no form supports int4 and t"],
    ),
    "blocks of tables": (["gather.axis=1", "gather.block_size=1"], ["gather.block_size is 1: ", "2 rows or more"]),
    "8 bits beside NVFP4": (
        ["method=nvfp4", "mixed.int8=[a]"],
        ["'portable' does not support int8", "no form supports nvfp4 and"],
    ),
    "NVFP4 in name only": (["method=nvfp4", "dtype=int4"], ["method=nvfp4 with dtype=int4: take method=rtn_dq"]),
    "an option of another group": (["method.dtype=nvfp4"], ["no option 'method.dtype': did you mean 'dtype'"]),
    "a folder": (["model=onnx", "model.path=."], ["folder '.' has no model"]),
    "a path as a model": (["model=nowhere.onnx"], ["model=onnx model.path=nowhere.onnx", "jaxq quantize nowhere.onnx"]),
    "an output": (["output=out.onnx"], ["'output'", "hydra.run.dir=out"]),
    "a flag of other tools": (["--block-size", "32"], ["no flag --block-size", "block_size=32"]),
    "bits as a flag": (["--bits=8"], ["no flag --bits", "dtype=int8"]),
    "a model as a flag": (["--model", "x.onnx"], ["no flag --model", "jaxq quantize x.onnx"]),
    "a choice without its group": (["rtn_dq"], ["'rtn_dq'", "write method=rtn_dq"]),
    "a model without a key": (["x.onnx"], ["'x.onnx'", "jaxq quantize x.onnx calib.samples=2"]),
    "an axis that tables lack": (["gather.axis=2"], ["gather.axis is 2"]),
    "accuracy level": (["form=matmulnbits", "form.accuracy_level=5"], ["accuracy_level is 5", "0 to 4"]),
    "8 bits that the form lacks": (
        ["form=matmulnbits", "mixed.int8=[a]", "mixed.block_size=-1"],
        ["mixed.block_size is -1", "16, 32"],
    ),
    "bits": (["method.bits_per_weight=0"], ["bits_per_weight is 0", "4.5"]),
    "bits as a word": (["method.bits_per_weight=few"], ["bits_per_weight", "few"]),
    "damping": (["method=gptq", "method.damping=-1"], ["method.damping is -1", "0.05"]),
    "descent passes": (["method=gptq", "method.descent_passes=1000"], ["method.descent_passes is 1000", "0 to 100"]),
    "shrinkage": (["method=best", "method.shrinkage=-1"], ["method.shrinkage is -1", "900"]),
    "ridge": (["method=best", "method.ridge=0"], ["method.ridge is 0", "4096"]),
    "GPTQ in float weights": (["method=best", "form=qdq"], ["stores the float weights", "form=dq"]),
    "no data for best": (["method=best", "calib.samples=0"], ["best needs calibration data", "rtn_dq"]),
    "too few bits": (["method=rtn_dq", "method.bits_per_weight=3.9", "calib.samples=0"], ["4.065 bits at least"]),
    "alpha step": (["method.alpha_step=0"], ["alpha_step is 0"]),
    "clip step": (["method.clip_step=-1"], ["clip_step is -1"]),
    "least clip ratio": (["method.min_clip_ratio=1.5"], ["min_clip_ratio is 1.5"]),
    "window size": (["window_gb=0"], ["window_gb is 0"]),
    "negative samples": (["calib.samples=-1"], ["calib.samples is -1"]),
    "batch size": (["calib.batch_size=0"], ["batch_size is 0"]),
    "no model path": (["model=onnx"], ["model.path"]),
    "missing model": (["model=onnx", "model.path=nowhere.onnx"], ["'nowhere.onnx'", "does not exist"]),
    "missing tokens": (["calib.tokens=nowhere.npz"], ["'nowhere.npz'", "does not exist"]),
    "missing text": (["calib.text=nowhere.txt", "calib.tokenizer=t.json"], ["'t.json'", "does not exist"]),
    "text that is not there": (["calib.text=nowhere.txt"], ["'nowhere.txt'", "does not exist", ".rst"]),
    "two kinds of data": (["calib.text=a", "calib.dataset=b"], ["calib.text and calib.dataset are given"]),
    "text for both": (
        ["calib.text=a.txt", "eval.text=./a.txt", "eval.samples=2"],
        ["'./a.txt' is also calibration text", "eval.holdout_fraction"],
    ),
    "text within text": (
        ["calib.text=a", "eval.text=a/b.txt", "eval.samples=2"],
        ["'a/b.txt' is also calibration text"],
    ),
    "a dataset for both": (
        ["calib.dataset=d", "eval.dataset=d", "eval.split=train", "eval.samples=2"],
        ["dataset 'd', split 'train' is also the calibration data"],
    ),
    "a split of nothing": (["calib.split=train"], ["calib.split is given without calib.dataset"]),
    "a share of nothing": (
        ["eval.holdout_fraction=0.2"],
        ["eval.holdout_fraction is 0.2 without text", "calib.text or calib.dataset"],
    ),
    "a share of all": (["eval.holdout_fraction=1"], ["eval.holdout_fraction is 1.0"]),
    "a share in other lengths": (
        ["calib.text=a", "eval.holdout_fraction=0.2", "eval.length=64"],
        ["eval.length is 64 and calib.length is 256"],
    ),
    "a share and text": (["calib.text=a", "eval.holdout_fraction=0.2", "eval.text=b"], ["leave out one of them"]),
    "no Hugging Face model": (["model=hf"], ["model.id"]),
    "a folder that is not there": (["model=hf", "model.id=./nowhere"], ["'./nowhere'", "no such folder"]),
    "an exported type": (["model=hf", "model.id=a", "model.dtype=int4"], ["model.dtype is 'int4'", "float16"]),
    "form that cannot scale": (["method=awq_lite", "form=qdq"], ["qdq", "awq_lite"]),
    "list without -m": (["method=rtn,rtn_dq"], ["--multirun"]),
    "everything excluded": (["method.exclude=['*']"], ["no weight that can be quantized", "'*'"]),
}


def assert_refused(done, words):
    assert done.code == 2
    sentences = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.err
    assert "Traceback" not in done.err + done.out
    for word in words:
        assert word in sentences[0]
    assert not list(done.folder.rglob("model.onnx*")), "a failed run leaves no model"
    assert not list(done.folder.rglob(".jaxq-*"))


@pytest.mark.parametrize("row", CONFIG_ROWS)
def test_config(jaxq, row):
    arguments, words = CONFIG_ROWS[row]
    assert_refused(jaxq(*("calib.samples=2", "eval.samples=0"), *arguments), words)


@pytest.fixture
def model(tmp_path):
    """A model with one MatMul over an embedding of ten tokens."""
    rng = np.random.default_rng(0)
    table = onnx.numpy_helper.from_array(rng.normal(size=(10, 32)).astype(np.float32), "table")
    weight = onnx.numpy_helper.from_array(rng.normal(size=(32, 10)).astype(np.float32), "w")
    nodes = [
        onnx.helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        onnx.helper.make_node("MatMul", ["x", "w"], ["logits"]),
    ]
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "s"])
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["b", "s", 10])
    graph = onnx.helper.make_graph(nodes, "g", [ids], [out], [table, weight])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def _with_weight(path, array):
    model = ir.load(path)
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    ir.save(model, path)


DATA_ROWS = {
    "ids out of range": ({"calib": np.full((2, 8), 10)}, ["token id 10", "0 to 9"]),
    "negative ids": ({"calib": np.full((2, 8), -1)}, ["token id -1"]),
    "wrong names": ({"tokens": np.zeros((2, 8), int)}, ["tokens", "input_ids"]),
    "float ids": ({"input_ids": np.zeros((2, 8))}, ["input_ids", "float64", "int64"]),
    "NaN": ({"input_ids": np.full((2, 8), np.nan)}, ["input_ids", "NaN"]),
    "wrong rank": ({"calib": np.zeros(8, int)}, ["input_ids", "2 dimensions"]),
    "no samples": ({"calib": np.zeros((0, 8), int)}, ["input_ids", "empty"]),
}


@pytest.mark.parametrize("row", DATA_ROWS)
def test_data(jaxq, model, tmp_path, row):
    arrays, words = DATA_ROWS[row]
    np.savez(tmp_path / "data.npz", **arrays)
    done = jaxq("model=onnx", f"model.path={model}", f"calib.tokens={tmp_path / 'data.npz'}", "block_size=16")
    assert_refused(done, words)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"], ids=["empty", "text", "cut"])
def test_token_file_that_is_none(jaxq, model, tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    done = jaxq("model=onnx", f"model.path={model}", f"calib.tokens={tmp_path / 'data.npz'}")
    assert_refused(done, ["data.npz", ".npz file"])


def test_a_method_that_needs_data_says_so(jaxq, model):
    done = jaxq("model=onnx", f"model.path={model}", "method=awq_lite", "block_size=16", "calib.samples=0")
    assert_refused(done, ["awq_lite needs calibration data", "calib.tokens", "rtn_dq"])


@pytest.mark.parametrize(
    "content", [b"", b"some text", b"\x08\x07\x3a\xff\xff", b"{}"], ids=["empty", "text", "cut", "json"]
)
def test_a_file_that_is_not_onnx(jaxq, tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert_refused(jaxq("model=onnx", f"model.path={path}"), ["bad.onnx", "not an ONNX model"])


def test_a_model_without_weights(jaxq, tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in "xy")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), tmp_path / "relu.onnx")
    done = jaxq("model=onnx", f"model.path={tmp_path / 'relu.onnx'}")
    assert_refused(done, ["no weight that can be quantized"])


def test_a_weight_with_nan_is_named(jaxq, model):
    _with_weight(model, np.full((32, 10), np.nan, np.float32))
    assert_refused(jaxq("model=onnx", f"model.path={model}", "block_size=16"), ["'w'", "NaN"])


def test_disk_full(jaxq, model, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ir, "save", full)
    monkeypatch.setattr(model_file, "save_lazily", full)
    for external in (1024, 0):
        done = jaxq("model=onnx", f"model.path={model}", "block_size=16", f"external_data_above_mb={external}")
        assert_refused(done, ["No space left on device", "model.onnx"])


def test_disk_full_of_what_lies_in_between(jaxq, model, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(command, "quantize_model", full)
    done = jaxq("model=onnx", f"model.path={model}", "block_size=16")
    assert_refused(done, ["No space left on device", "cache_dir", tempfile.gettempdir(), "resumes"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(jaxq, model, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = jaxq("model=onnx", f"model.path={model}", "block_size=16", f"hydra.run.dir={locked}/out")
    assert_refused(done, ["Permission denied"])


def test_an_output_folder_that_is_a_file(jaxq, model, tmp_path):
    (tmp_path / "file").write_text("")
    done = jaxq("model=onnx", f"model.path={model}", "block_size=16", f"hydra.run.dir={tmp_path}/file")
    assert done.code == 2
    assert done.err.startswith("error: ")


def test_the_module_itself_exits_with_2_and_shows_a_traceback_only_when_asked(tmp_path):
    command = [sys.executable, "-m", "jaxq.run", "block_size=1", "calib.samples=0"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stderr.count("\n")) == (2, 1)
    asked = os.environ | {"JAXQ_TRACEBACK": "1"}
    loud = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=asked)
    assert loud.returncode != 0
    assert "Traceback" in loud.stderr
