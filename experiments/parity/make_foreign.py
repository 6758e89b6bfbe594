"""Write a small model as NVIDIA ModelOpt and onnxruntime quantize it, so that jaxq's readback can be tested with it.

    python experiments/parity/make_foreign.py       # a Python with nvidia-modelopt[onnx]; a minute, CPU only

Writes into tests/readback/foreign: the float model (``x [n, 64] w [64, 12]``, and a table of 6 rows of 48), and a file
for each method. Each is made by a process of its own: once ModelOpt wrote an operator of TensorRT, it writes no other.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOREIGN = Path(__file__).parents[2] / "tests" / "readback" / "foreign"

MODELOPT = {
    "rtn": ("rtn", {}),
    "rtn_dq": ("rtn_dq", {}),
    "rtn_trt": ("rtn_trt", {}),
    "rtn_trt_dq": ("rtn_trt_dq", {}),
    "awq_lite": ("awq_lite", {}),
    "awq_clip": ("awq_clip", {}),
    "columns": ("rtn_dq", {"use_column_major": True}),
    "gather": ("rtn_dq", {"gather_quantize_axis": 1}),
    "gather_trt": ("rtn_trt_dq", {"gather_quantize_axis": 1}),
    "layers_8bit": ("rtn_dq", {"layers_8bit": "matmul"}),
    "layers_8bit_trt": ("rtn_trt_dq", {"layers_8bit": "matmul"}),
}

BLOCK = 32


def float_model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    tensors = {"w": rng.normal(size=(64, 12)) * 0.1, "table": rng.normal(size=(6, 48))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul"),
        helper.make_node("Gather", ["table", "ids"], ["e"], name="gather"),
    ]
    x, y, e = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"x": ["n", 64], "y": ["n", 12], "e": ["m", 48]}.items()
    )
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["m"])
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "foreign", [x, ids], [y, e], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_modelopt(model: onnx.ModelProto, method: str, options: dict) -> onnx.ModelProto:
    from modelopt.onnx.quantization import int4  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(1)
    feeds = {"x": rng.normal(size=(8, 64)).astype(np.float32), "ids": np.arange(6)}
    how = {"calibration_eps": ["cpu"], "block_size": BLOCK, "use_external_data_format": False}
    return int4.quantize(model, method, calibration_data_reader=[feeds], **how, **options)


def by_onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        model,
        block_size=BLOCK,
        is_symmetric=True,
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    quantizer.process()
    return quantizer.model.model  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOREIGN)
    parser.add_argument("--only", choices=["float", *MODELOPT, "onnxruntime"], help="one file, in this process")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    if given.only is None:
        for name in ("float", *MODELOPT, "onnxruntime"):
            subprocess.run([sys.executable, __file__, "--output", given.output, "--only", name], check=True)
        return
    model, path = float_model(), given.output / f"{given.only}.onnx"
    if given.only in MODELOPT:
        model = by_modelopt(model, *MODELOPT[given.only])
    elif given.only == "onnxruntime":
        model = by_onnxruntime(model)
    onnx.save(model, path)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
