"""ModelOpt's array functions, for functions.py; run by a Python that has nvidia-modelopt[onnx]."""

import argparse
from importlib.metadata import version
from typing import Any

import modelopt.onnx.quantization.quant_utils as mo  # pyright: ignore[reportMissingImports]
import numpy as np
from functions_serve import Call, serve, weight
from modelopt.onnx.export import nvfp4_exporter  # pyright: ignore[reportMissingImports]
from modelopt.onnx.quantization.extensions import round_and_pack_ext  # pyright: ignore[reportMissingImports]

NVFP4_BLOCK = 16
PART = 256  # the packer in Python is timed on one row in so many


def nvfp4(w: np.ndarray) -> tuple[Any, Any, Any]:
    """Bytes and the two scales, as its exporter makes them; blocks run along the last axis."""
    s2 = mo.get_weights_scaling_factor_2(w)
    s = mo.get_weights_scaling_factor(w, NVFP4_BLOCK, s2)
    s, bytes_of_s = nvfp4_exporter._encode_nvfp4_block_scale(s)
    return nvfp4_exporter._cast_fp4(mo.quantize(w, NVFP4_BLOCK, s, s2)), bytes_of_s, s2


def quantize_and_pack(w: np.ndarray, block: int) -> tuple[Any, Any]:
    """Bytes and scales."""
    q, s, _ = mo.quant_tensor(w, block)
    return mo.pack_weights_to_int4(q), s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--block-size", type=int, required=True)
    args = parser.parse_args()
    block, w = args.block_size, weight(args.size)
    calls: list[Call] = []
    for axis in (0, 1):
        q, s, _ = mo.quant_tensor(w, block, axis)
        calls += [
            Call(f"find_scales, axis {axis}", "", lambda a=axis: mo.find_scales(w, block, a)),
            Call(f"rtn, axis {axis}", "", lambda a=axis, s=s: mo.rtn(w, s, block, a)),
            Call(f"dq_tensor, axis {axis}", "", lambda a=axis, q=q, s=s: mo.dq_tensor(q, s, block, a)),
            Call(f"quant_tensor, axis {axis}", "", lambda a=axis: mo.quant_tensor(w, block, a)),
        ]
    calls.append(Call("quant_tensor, zero point", "", lambda: mo.quant_tensor(w, block, use_zero_point=True)))
    q = mo.quant_tensor(w, block)[0]
    part = q[: max(args.size // PART, 1)]
    share = len(part) / len(q)
    in_python = f"optimized, {share:.2%} of the rows, extrapolated"
    calls += [
        Call("pack", "pack_weights_to_int4", lambda: mo.pack_weights_to_int4(q)),
        Call("pack", in_python, lambda: mo.pack_float32_to_4bit_optimized(part, True), share),
        Call("quant_tensor + pack", "pack_weights_to_int4", lambda: quantize_and_pack(w, block)),
        Call(f"nvfp4, block {NVFP4_BLOCK}", "", lambda: nvfp4(w)),
    ]
    if round_and_pack_ext is not None:
        calls.append(Call("pack", "cpp_based", lambda: mo.pack_float32_to_4bit_cpp_based(q, True)))
    found = {name: version(name) for name in ("nvidia-modelopt", "numpy", "torch")}
    serve(calls, {**found, "C++ packer": "built" if round_and_pack_ext is not None else "not built"})


if __name__ == "__main__":
    main()
