"""onnxruntime's kernels for the same work, for functions.py: QuantizeLinear, DequantizeLinear, its 4-bit quantizer.

The nodes run alone in a session, with their inputs bound and their outputs in the session's own memory, which it keeps
from one run to the next. The weight is no constant, so nothing is folded.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from functions_serve import Call, serve, weight
from onnx import TensorProto, helper
from onnxruntime.capi import _pybind_state

quantize_matmul_4bits: Any = _pybind_state.quantize_matmul_4bits  # pyright: ignore[reportAttributeAccessIssue]
quantize_qdq_matmul_4bits: Any = _pybind_state.quantize_qdq_matmul_4bits  # pyright: ignore[reportAttributeAccessIssue]
FLOAT = TensorProto.FLOAT
TYPES = {"int8": TensorProto.INT8, "int4": TensorProto.INT4}


def node(op: str, x: onnxruntime.OrtValue, kind: int, y_kind: int, s: np.ndarray, axis: int, block: int) -> Callable:
    """A function that runs one node, (De)QuantizeLinear, on ``x`` with scales ``s``."""
    made: dict[str, Any] = {"output_dtype": y_kind} if op == "QuantizeLinear" else {}
    shape = list(x.shape())
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "s"], ["y"], axis=axis, block_size=block, **made)],
        "one_node",
        [helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("s", FLOAT, s.shape)],
        [helper.make_tensor_value_info("y", y_kind, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scales = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(s))

    def run() -> onnxruntime.OrtValue:
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x)
        binding.bind_ortvalue_input("s", scales)
        binding.bind_output("y", "cpu")
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    return run


def qdq_layout(w: np.ndarray, block: int) -> Callable[[], object]:
    """Scales and packed codes in the weight's own layout, as for DequantizeLinear."""
    rows, columns = w.shape

    def run() -> object:
        packed = np.zeros(rows * columns // 2, np.uint8)
        zero = np.zeros(rows // block * columns // 2, np.uint8)
        s = np.zeros((rows // block, columns), np.float32)
        quantize_qdq_matmul_4bits(packed, w, s, zero, block, columns, rows, True)
        return packed, s

    return run


def nbits_layout(w: np.ndarray, block: int) -> Callable[[], object]:
    """Scales and packed codes transposed, as MatMulNBits has them."""
    rows, columns = w.shape

    def run() -> object:
        packed = np.zeros((columns, rows // block, block // 2), np.uint8)
        zero = np.zeros((columns, rows // block // 2), np.uint8)
        s = np.zeros((columns, rows // block), np.float32)
        quantize_matmul_4bits(packed, w, s, zero, block, columns, rows, True)
        return packed, s

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--block-size", type=int, required=True)
    args = parser.parse_args()
    size, block, w = args.size, args.block_size, weight(args.size)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(w)
    by_rows = abs(w.reshape(size // block, block, size)).max(axis=1) / 7
    by_columns = abs(w.reshape(size, size // block, block)).max(axis=2) / 7
    calls: list[Call] = []
    for axis, s in enumerate((by_rows, by_columns)):
        for name, kind in TYPES.items():
            quantize = node("QuantizeLinear", value, FLOAT, kind, s, axis, block)
            dequantize = node("DequantizeLinear", quantize(), kind, FLOAT, s, axis, block)
            calls.append(Call(f"rtn, axis {axis}", f"QuantizeLinear to {name}", quantize))
            calls.append(Call(f"dq_tensor, axis {axis}", f"DequantizeLinear of {name}", dequantize))
    calls.append(Call("quant_tensor + pack", "quantize_qdq_matmul_4bits", qdq_layout(w, block)))
    calls.append(Call("quant_tensor + pack", "quantize_matmul_4bits", nbits_layout(w, block)))
    serve(calls, {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__})


if __name__ == "__main__":
    main()
