"""Quantize an ONNX model with onnxruntime's MatMulNBits quantizers, which need no calibration.

The default (rtn) rounds to nearest, symmetric; hqq chooses float zero points, k_quant scales and zero points.

Prints one JSON line: how many weights were quantized, and the seconds of each stage.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import (
    HQQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--algorithm", choices=["rtn", "hqq", "k_quant"], default="rtn")
    args = parser.parse_args()

    start = time.perf_counter()
    model = onnx.load(args.model)
    heads = [n.name for n in model.graph.node if n.op_type == "MatMul" and "lm_head" in n.name]
    configs = {
        "rtn": lambda: None,
        "hqq": lambda: HQQWeightOnlyQuantConfig(block_size=args.block_size),
        "k_quant": KQuantWeightOnlyQuantConfig,
    }
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=args.block_size,
        is_symmetric=args.algorithm == "rtn",
        nodes_to_exclude=heads,
        algo_config=configs[args.algorithm](),
    )
    quantizer.process()
    quantized = time.perf_counter()
    written: Any = quantizer.model
    written.save_model_to_file(str(args.out), use_external_data_format=False)
    saved = time.perf_counter()
    seconds = {"quantize": quantized - start, "save": saved - quantized}
    count = sum(n.op_type == "MatMulNBits" for n in written.graph().node)
    print(json.dumps({"quantized": count, "stage_seconds": seconds}))


if __name__ == "__main__":
    main()
