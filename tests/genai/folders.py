"""Folders of onnxruntime-genai's model builder: its own graphs and configurations, with weights made here."""

import shutil
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import ExternalDataInfo
from onnx.helper import tensor_dtype_to_np_dtype

import jaxq.embedded
from jaxq.files.model_file import load_model
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import read_input_spec, to_batches

GRAPHS = Path(__file__).parent / "graphs"
NAMES = sorted(p.name for p in GRAPHS.iterdir())
VOCABULARY = 2048
RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
RUNS = pytest.mark.skipif(RUNTIME < (1, 31), reason="GroupQueryAttention has attributes that this onnxruntime lacks")


def make_folder(name: str, folder: Path) -> Path:
    """A copy of a builder's folder, with random weights and jaxq's tokenizer; returns the model's file."""
    shutil.copytree(GRAPHS / name, folder)
    shutil.copy(Path(jaxq.embedded.__file__).parent / "tokenizer.json", folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    with (folder / "model.onnx.data").open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                file.seek(ExternalDataInfo(tensor).offset or 0)
                file.write(_values(tensor).tobytes())
    return folder / "model.onnx"


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    """Tables of rotary positions as they have to be; else random numbers that keep the size of activations."""
    shape = tuple(tensor.dims)
    if tensor.name in ("cos_cache", "sin_cache"):
        angles = np.outer(np.arange(shape[0]), 10000.0 ** (-np.arange(shape[1]) / shape[1]))
        values = np.cos(angles) if tensor.name == "cos_cache" else np.sin(angles)
    else:
        normal = np.random.default_rng(zlib.crc32(tensor.name.encode())).standard_normal(shape)
        wide = 0.2 if "embed" in tensor.name else 1.3 * shape[0] ** -0.5
        values = 1 + 0.2 * normal if len(shape) == 1 else wide * normal
    return values.astype(tensor_dtype_to_np_dtype(tensor.data_type))


def random_ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCABULARY, shape)


def batch(path: Path, ids: np.ndarray, mask: np.ndarray | None = None) -> Batch:
    """One batch as jaxq feeds it."""
    arrays = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
    (only,) = to_batches(arrays, read_input_spec(load_model(path)), len(ids))
    return only


def logits(path: Path, fed: Batch) -> np.ndarray:
    """What onnxruntime computes, products with 4-bit weights in float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], dict(fed.feeds))[0], np.float32)


def generate(folder: Path, prompt: str, count: int = 16) -> list[int]:
    """Token ids of a prompt and its most likely continuation, by onnxruntime-genai."""
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(folder))
    ids = genai.Tokenizer(model).encode(prompt)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=128, do_sample=False)  # room for Gemma's window of 64
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids)
    for _ in range(count):
        if generator.is_done():
            break
        generator.generate_next_token()
    return [int(i) for i in generator.get_sequence(0)]
