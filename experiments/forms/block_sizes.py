"""Which blocks onnxruntime multiplies by as they are, and what the others cost: form dq, a random weight in int4.

    python experiments/forms/block_sizes.py [--sizes 8 24 32 48 96 128]

For each size: whether onnxruntime puts MatMulNBits in place of DequantizeLinear and MatMul, the error relative to the
same product in numpy, and milliseconds of a product with 1 and with 128 tokens (median of 15). Run it on idle cores.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

C_IN, C_OUT = 2048, 8192
TOKENS = (1, 128)
REPEATS = 15


def make_model(codes: np.ndarray, scales: np.ndarray, block_size: int) -> onnx.ModelProto:
    """``y = x W`` with the codes [c_in, c_out] of W in int4 and scales [blocks, c_out]."""
    nibbles = codes.ravel().astype(np.uint8) & 15
    packed = (nibbles[0::2] | nibbles[1::2] << 4).tobytes()
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=block_size),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    q = TensorProto(name="q", data_type=TensorProto.INT4, dims=codes.shape, raw_data=packed)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", C_IN])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", C_OUT])]
    graph = helper.make_graph(nodes, "block", inputs, outputs, [q, numpy_helper.from_array(scales, "s")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def measure(block_size: int, folder: Path) -> tuple[bool, float, list[float]]:
    """Fused or not, relative error, and milliseconds for each of `TOKENS`."""
    random = np.random.default_rng(0)
    codes = random.integers(-8, 8, (C_IN, C_OUT))
    scales = random.uniform(0.01, 0.1, (-(-C_IN // block_size), C_OUT)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / f"{block_size}.onnx")
    model = make_model(codes, scales, block_size).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    fused = any(node.op_type == "MatMulNBits" for node in onnx.load(options.optimized_model_filepath).graph.node)
    w, milliseconds, error = codes * np.repeat(scales, block_size, axis=0)[:C_IN], [], 0.0
    for tokens in TOKENS:
        x, seconds = random.standard_normal((tokens, C_IN)).astype(np.float32), []
        for _ in range(REPEATS):
            start = time.perf_counter()
            (y,) = session.run(None, {"x": x})
            seconds.append(time.perf_counter() - start)
        wanted = x.astype(np.float64) @ w
        error = max(error, float(np.abs(np.asarray(y) - wanted).max() / np.abs(wanted).max()))
        milliseconds.append(1e3 * statistics.median(seconds))
    return fused, error, milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024])
    arguments = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, weight [{C_IN}, {C_OUT}], tokens {TOKENS}")
    with TemporaryDirectory() as folder:
        for size in arguments.sizes:
            fused, error, milliseconds = measure(size, Path(folder))
            times = ", ".join(f"{value:.2f}" for value in milliseconds)
            print(f"blocks of {size}: {'fused' if fused else 'expanded'}, error {error:.1e}, {times} ms")


if __name__ == "__main__":
    main()
