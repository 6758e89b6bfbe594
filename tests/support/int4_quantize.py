"""A model and calibration data for the tests of `jaxq.int4.quantize`, and what its results hold."""

import onnx

from tests.support import models
from tests.support.models import HIDDEN, tokens

DATA = [{"x": tokens(2, 8, HIDDEN, seed=i)} for i in range(3)]


def attention() -> onnx.ModelProto:
    """Attention with a last layer of the name that is excluded by default."""
    model = models.attention()
    model.graph.node[-1].name = "/lm_head/MatMul"
    return model


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Types of the codes by the weight's name."""
    end = "_quantized"
    return {t.name.removesuffix(end): t.data_type for t in model.graph.initializer if t.name.endswith(end)}
