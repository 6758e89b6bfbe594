"""Run models in onnx's reference evaluator, TensorRT's operators among them."""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


def _of_each(scale: np.ndarray, like: np.ndarray, axis: int, block_size: int | None) -> np.ndarray:
    """The scale of each element of ``like``: one a block along an axis, or one for each index of it."""
    if block_size is None:
        return scale.reshape([-1 if i == axis % like.ndim else 1 for i in range(like.ndim)])
    return np.repeat(scale, block_size, axis).take(range(like.shape[axis]), axis)


class TRT_INT4QuantizeLinear(OpRun):
    op_domain = "trt"

    def _run(self, x, scale, axis=0, block_size=None):
        q = np.rint(x.astype(np.float32) / _of_each(scale, x, axis, block_size).astype(np.float32))
        return (np.clip(q, -8, 7).astype(ml_dtypes.int4),)


class TRT_INT4DequantizeLinear(OpRun):
    op_domain = "trt"

    def _run(self, q, scale, axis=0, block_size=None):
        assert q.dtype == ml_dtypes.int4
        return (q.astype(scale.dtype) * _of_each(scale, q, axis, block_size),)


class TRT_MXFP8DequantizeLinear(OpRun):
    op_domain = "trt"

    def _run(self, q, exponents, axis=-1, block_size=32, output_dtype=onnx.TensorProto.FLOAT):
        assert (q.dtype, exponents.dtype) == (ml_dtypes.float8_e4m3fn, np.uint8)
        scale = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
        w = q.astype(np.float32) * _of_each(scale, q, axis, block_size)
        return (w.astype(tensor_dtype_to_np_dtype(output_dtype)),)


def evaluate(model: Path | onnx.ModelProto, feeds: Mapping[str, np.ndarray], *outputs: str) -> list[np.ndarray]:
    """Outputs of a model, or values within it, by the definitions of its operators."""
    proto = onnx.load(model) if isinstance(model, Path) else model
    operators: list[type[OpRun]] = [TRT_INT4QuantizeLinear, TRT_INT4DequantizeLinear, TRT_MXFP8DequantizeLinear]
    runner = ReferenceEvaluator(proto, new_ops=operators)
    results = runner.run(list(outputs) or None, dict(feeds), intermediate=bool(outputs))
    if isinstance(results, dict):
        results = [results[name] for name in outputs]
    return [np.asarray(array) for array in results]
