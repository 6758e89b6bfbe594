"""Build small ONNX models: nodes from short texts, random weights, a checked model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

HIDDEN, FFN = 64, 96
ACTIVATION = ("batch", "sequence", HIDDEN)
Shape = Sequence[int | str | None]


def weight(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Normal numbers that keep the size of what they are multiplied with."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)


def vector(size: int = HIDDEN, seed: int = 0) -> np.ndarray:
    """Numbers around one, as in a norm's weight."""
    return (1 + 0.3 * np.random.default_rng([seed, size]).standard_normal(size)).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node named after its first output, as "/y/MatMul"; inputs and outputs apart by spaces."""
    name = f"/{outputs.split(maxsplit=1)[0]}/{op}"
    return helper.make_node(op, inputs.split(), outputs.split(), name, **attributes)


def value(name: str, shape: Shape | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def build(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, np.ndarray],
    outputs: Mapping[str, Shape],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    *,
    opset: int = 18,
    dtype: int = TensorProto.FLOAT,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A checked model; its input is ``x`` [batch, sequence, HIDDEN] unless said otherwise."""
    ins = list(inputs) or [value("x", ACTIVATION, dtype)]
    outs = [value(name, shape, dtype) for name, shape in outputs.items()]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "small", ins, outs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def branch(*nodes: NodeProto, weights: Mapping[str, np.ndarray] | None = None) -> onnx.GraphProto:
    """A branch of an If; its output is the last node's."""
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    return helper.make_graph(list(nodes), "branch", [], [value(nodes[-1].output[0], ACTIVATION)], initializers)
