"""Small encoders and language models built by hand, and what numpy says of outputs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IDS = 40
HIDDEN = 32


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: dict[str, np.ndarray]) -> Path:
    """Writes a model at opset 18."""
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def encoder(path: Path, seed: int = 0, noise: float = 0.0) -> Path:
    """Token states that see all real tokens, a pooled state, the most likely feature, and a cache.

    Args:
        path: Where it goes.
        seed: Of the noise.
        noise: Added to the weight, as a share of its size.
    """
    rng = np.random.default_rng(7)
    table, w = (rng.normal(size=shape).astype(np.float32) for shape in ((IDS, HIDDEN), (HIDDEN, HIDDEN)))
    w = w + noise * np.random.default_rng(seed).normal(size=w.shape).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["column"]),
        helper.make_node("Mul", ["x", "column"], ["real"]),
        helper.make_node("ReduceMean", ["real", "one"], ["context"], keepdims=1),
        helper.make_node("Add", ["x", "context"], ["seen"]),
        helper.make_node("MatMul", ["seen", "w"], ["last_hidden_state"]),
        helper.make_node("ReduceMean", ["last_hidden_state", "one"], ["pooler_output"], keepdims=0),
        helper.make_node("ArgMax", ["last_hidden_state"], ["labels"], axis=-1, keepdims=0),
        helper.make_node("Identity", ["seen"], ["present.0.key"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in ("input_ids", "attention_mask")]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "s", HIDDEN]),
        helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["b", HIDDEN]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["b", "s"]),
        helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT, ["b", "s", HIDDEN]),
    ]
    one, two = (np.array([n], np.int64) for n in (1, 2))
    return save(path, nodes, inputs, outputs, {"table": table, "w": w, "one": one, "two": two})


def with_logits(path: Path, causal: bool) -> Path:
    """Logits of every id at every token, from the tokens up to it or from all."""
    rng = np.random.default_rng(3)
    table, head = (rng.normal(size=shape).astype(np.float32) for shape in ((IDS, HIDDEN), (HIDDEN, IDS)))
    mix = (
        helper.make_node("CumSum", ["x", "axis"], ["y"])
        if causal
        else helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1)
    )
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x"]), mix]
    if not causal:
        nodes.append(helper.make_node("Add", ["x", "sum"], ["y"]))
    nodes.append(helper.make_node("MatMul", ["y", "head"], ["logits"]))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", IDS])
    axis = {"axis": np.array(1, np.int64)} if causal else {"axes": np.array([1], np.int64)}
    return save(path, nodes, [ids], [out], {"table": table, "head": head, **axis})


def figures(reference: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean and least cosine of rows [rows, features], and relative error, in float64."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    has = np.linalg.norm(a, axis=1) > 0
    length = np.linalg.norm(a[has], axis=1) * np.linalg.norm(b[has], axis=1)
    cosine = (a[has] * b[has]).sum(axis=1) / np.where(length > 0, length, 1)
    return float(cosine.mean()), float(cosine.min()), float(np.linalg.norm(a - b) / np.linalg.norm(a))
