"""Quantize an ONNX model with NVIDIA ModelOpt to int4; run by a Python that has nvidia-modelopt[onnx].

Prints one JSON line: how many weights were quantized, and the seconds of each stage.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from modelopt.onnx.quantization.int4 import quantize  # pyright: ignore[reportMissingImports]


def weight_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the MatMul nodes with a constant 2-D weight."""
    weights = {t.name for t in model.graph.initializer if len(t.dims) == 2}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and weights & set(n.input)]


def feeds(tokens: Path) -> Any:
    """The calibration data as a list of feeds, which `quantize` takes in place of a reader."""
    rows = np.load(tokens)["calib"].astype(np.int64)
    return [{"input_ids": row[None], "attention_mask": np.ones_like(row)[None]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", choices=("rtn_dq", "awq_lite", "awq_full"), required=True)
    parser.add_argument("--cached", action="store_true", help="keep all activations in memory")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--only", default="", help="quantize only nodes in whose names this pattern is found")
    args = parser.parse_args()

    names = weight_nodes(onnx.load(args.model, load_external_data=False))
    chosen = [n for n in names if "lm_head" not in n and re.search(args.only, n)]
    excluded = [f"^{re.escape(n)}$" for n in names if n not in chosen]
    # Fusing the scales into the node before needs cupy, and fails without it.
    options: dict[str, Any] = {} if args.method == "rtn_dq" else {"awqlite_fuse_nodes": False}
    if args.cached:
        options["enable_fast_path_using_high_sysram"] = True
    start = time.perf_counter()
    model = quantize(
        str(args.model),
        args.method,
        feeds(args.tokens),
        calibration_eps=["cpu"],
        block_size=args.block_size,
        nodes_to_exclude=excluded,
        **options,
    )
    quantized = time.perf_counter()
    onnx.save(model, args.out)
    saved = time.perf_counter()
    seconds = {"quantize": quantized - start, "save": saved - quantized}
    int4 = sum(t.data_type == onnx.TensorProto.INT4 for t in model.graph.initializer)
    print(json.dumps({"quantized": int4, "chosen": len(chosen), "stage_seconds": seconds}))


if __name__ == "__main__":
    main()
