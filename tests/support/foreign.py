"""Models with quantized weights that jaxq did not write, and files with float weights in place of quantized ones."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from jaxq.files.model_file import load_model, save_model
from jaxq.readback.float_model import float_model
from jaxq.readback.weights import read_weights
from tests.support.models import value


def expanded(path: Path) -> Path:
    """The file with float weights in place of its quantized ones."""
    model = load_model(path)
    float_model(model)
    target = path.with_name(f"{path.stem}.float.onnx")
    save_model(model, target, external_above=1 << 30)
    onnx.checker.check_model(str(target), full_check=True)
    assert not read_weights(load_model(target))
    assert not {n.domain for n in onnx.load(target).graph.node} - {""}
    assert [o.domain for o in onnx.load(target).opset_import] == [""]
    return target


def foreign(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], **outputs: int) -> onnx.ModelProto:
    """A model of ``x`` [n, 32] with operators of onnxruntime's domain, and the ranks of its outputs."""
    outs = [value(name, (*"abc"[: rank - 1], 32)) for name, rank in (outputs or {"y": 2}).items()]
    graph = helper.make_graph(nodes, "foreign", [value("x", ("n", 32))], outs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def tensor(name: str, array: np.ndarray, kind: int | None = None) -> onnx.TensorProto:
    if kind is None:
        return onnx.numpy_helper.from_array(array, name)
    return helper.make_tensor(name, kind, array.shape, array.ravel())


def codes(*shape: int, low: int = -8, high: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape)


SCALES = (1 + np.arange(64, dtype=np.float32)).reshape(2, 32) / 64


Q, S = tensor("q", codes(32, 32), TensorProto.INT4), tensor("s", SCALES)
"""Codes [32, 32] and scales for blocks of 16 rows."""
