"""Stacks of matrices times an activation, and the weights that a file with a stack has to hold."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto

from jaxq.files.model_file import load_model, save_model
from jaxq.formats.registry import WeightFormat
from jaxq.readback.float_model import float_model
from tests.support.models import HIDDEN, build, node, tokens, value, weight

X = {"x": tokens(3, 20, HIDDEN)}
ROUTER = ("router*",)


def product(shape: Sequence[int | str], stack: np.ndarray, out: Sequence[int | str]) -> onnx.ModelProto:
    """A stack times an activation of any shape."""
    kind = TensorProto.FLOAT16 if stack.dtype == np.float16 else TensorProto.FLOAT
    return build([node("MatMul", "x w", "y")], {"w": stack}, {"y": out}, [value("x", shape, kind)], dtype=kind)


def stack(count: int = 3, rows: int = 72, columns: int = 20, dtype: type = np.float32) -> np.ndarray:
    return np.stack([weight(rows, columns, seed=i, dtype=dtype) for i in range(count)])


def in_float(path: Path) -> Path:
    """The file with float weights in place of those that its bytes stand for."""
    model = load_model(path)
    float_model(model)
    save_model(model, path.with_suffix(".float.onnx"), external_above=1 << 30)
    return path.with_suffix(".float.onnx")


def expected_stack(w: np.ndarray, fmt: WeightFormat) -> np.ndarray:
    """Each matrix by itself after quantization."""
    each = [np.asarray(fmt.of_weights(w.dtype.name).round_trip(jnp.asarray(m))) for m in w.reshape(-1, *w.shape[-2:])]
    return np.stack(each).reshape(w.shape)
