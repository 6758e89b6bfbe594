"""Models after `prepare`, and models whose products read given numbers."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from jaxq.graph.prepare import prepare
from tests.support.models import HIDDEN, tokens
from tests.support.running import OPSET_23

X = {"x": tokens(2, 6, HIDDEN)}
OPSETS = [*range(13, 22), pytest.param(22, marks=OPSET_23), pytest.param(23, marks=OPSET_23)]
FUNCTIONS = ("given", "attributed", "transposed_by_function")


def prepared(model: onnx.ModelProto) -> ir.Model:
    result = ir.from_proto(model)
    prepare(result)
    return result


def with_values(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model whose products read these numbers in place of values, whatever those are computed from."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name, array in values.items():
        for each in copy.graph.node:
            if each.op_type == "MatMul" and each.input[1] == name:
                each.input[1] = f"{name}/given"
        copy.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), f"{name}/given"))
    return copy
