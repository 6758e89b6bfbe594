"""Golden cases of the NVFP4 and MX functions of quant_utils, and of bfloat16 weights."""

from typing import Any

import ml_dtypes
import numpy as np
from golden_pool import Pool
from modelopt.onnx.quantization import quant_utils  # pyright: ignore[reportMissingImports]


def matrices() -> dict[str, np.ndarray]:
    """Weights [n, k] in blocks along k, as NVFP4 has them."""
    rng = np.random.default_rng(21)
    w = rng.normal(size=(3, 32)).astype(np.float32)
    zeros = w.copy()
    zeros[1, :16] = 0
    zeros[2] = 0
    return {
        "normal": w,
        "one_row": rng.normal(size=(1, 48)).astype(np.float32),
        "zeros": zeros,
        "all_zeros": np.zeros((2, 32), np.float32),
        "huge": w * np.float32(1e30),
        "tiny": w * np.float32(1e-25),
        "mixed": w * np.float32(10) ** np.array([-3, 0, 3], np.float32)[:, None],
        "half": w.astype(np.float16),
        "bfloat16": w.astype(ml_dtypes.bfloat16),
    }


def nvfp4_cases(pool: Pool) -> list[dict]:
    cases = []
    for name, w in matrices().items():
        s2 = quant_utils.get_weights_scaling_factor_2(w)
        place = pool.add(w)
        for block_size in (16, w.shape[1]):
            s = quant_utils.get_weights_scaling_factor(w, block_size, s2)
            scaled = quant_utils.quantize(w, block_size, s, s2)
            cases.append({"id": f"nvfp4-{name}-{block_size}", "function": "quantize", "w": place,
                          "parameters": {"block_size": block_size}, "s2": pool.add(s2), "s": pool.add(s),
                          "scaled": pool.add(scaled), "reasons": []})  # fmt: skip
    return cases


def tensors() -> dict[str, np.ndarray]:
    """Weights of 2 and 3 dimensions for blocks on any axis."""
    rng = np.random.default_rng(22)
    two, three = rng.normal(size=(32, 16)).astype(np.float32), rng.normal(size=(2, 16, 24)).astype(np.float32)
    zeros = two.copy()
    zeros[:8, :8] = 0
    return {
        "normal_2d": two,
        "normal_3d": three,
        "zeros_2d": zeros,
        "one_column_2d": two[:, :1],
        "huge_2d": two * np.float32(1e37),
        "tiny_2d": two * np.float32(1e-36),
        "half_2d": two.astype(np.float16),
        "bfloat16_2d": two.astype(ml_dtypes.bfloat16),
    }


def true_amax(w: np.ndarray, axis: int, block_size: int) -> np.ndarray:
    """Greatest magnitudes of blocks of consecutive elements, ``n_blocks`` in place of the axis."""
    moved = np.abs(np.moveaxis(w, axis, -1))
    blocks = moved.reshape(*moved.shape[:-1], -1, block_size).max(-1)
    return np.moveaxis(blocks, -1, axis)


def amax_cases(pool: Pool) -> list[dict]:
    """get_amax; and compute_e8m0 of the true magnitudes, so that it can be compared on axis 0 too."""
    cases = []
    for name, w in tensors().items():
        place = pool.add(w)
        for axis in (0, 1, -1) if w.ndim == 2 else (1, 2, -1):
            for block_size in sorted({8, w.shape[axis]}):
                if w.shape[axis] % block_size:
                    continue
                amax = quant_utils.get_amax(w, axis, block_size)
                true = true_amax(w, axis % w.ndim, block_size).reshape(amax.shape)
                with np.errstate(divide="ignore"):
                    e8m0 = quant_utils.compute_e8m0(true.astype(np.float32), w.shape, axis, block_size)
                wrong = [] if np.array_equal(amax, true) else ["strided_amax"]
                cases.append({"id": f"amax-{name}-{axis}-{block_size}", "function": "get_amax", "w": place,
                              "parameters": {"quant_axis": axis, "block_size": block_size}, "amax": pool.add(amax),
                              "e8m0": pool.add(e8m0), "reasons": wrong})  # fmt: skip
    return cases


def exponent_case(pool: Pool, name: str, amax: np.ndarray) -> dict:
    """compute_e8m0 of given magnitudes, one a block."""
    e8m0 = quant_utils.compute_e8m0(amax, (1, amax.size), 1, 1)
    return {"id": f"e8m0-{name}", "function": "compute_e8m0", "amax": pool.add(amax), "e8m0": pool.add(e8m0),
            "reasons": ["log2_rounds"] if name == "above" else []}  # fmt: skip


def exponent_cases(pool: Pool) -> list[dict]:
    exact = (448 * 2.0 ** np.arange(-126, 119)).astype(np.float32)
    return [
        exponent_case(pool, "exact", exact),
        exponent_case(pool, "below", np.nextafter(exact, np.float32(0))),
        exponent_case(pool, "above", np.nextafter(exact, np.float32(np.inf))),
    ]


def bfloat16_cases(pool: Pool) -> list[dict]:
    """ModelOpt takes bfloat16 weights and gives float32 scales; jaxq's have the weight's type."""
    w = np.random.default_rng(23).normal(size=(40, 5)).astype(ml_dtypes.bfloat16)
    cases = []
    for use_zero_point in (False, True):
        zp: Any
        codes, s, zp = quant_utils.quant_tensor(w, 16, use_zero_point=use_zero_point)
        cases.append({"id": f"bfloat16-{use_zero_point}", "function": "quant_tensor", "w": pool.add(w),
                      "parameters": {"block_size": 16, "use_zero_point": use_zero_point}, "s": pool.add(s),
                      "zp": None if zp is None else pool.add(zp), "codes": pool.add(codes),
                      "reasons": ["scale_dtype"]})  # fmt: skip
    return cases


def page_cases(pool: Pool) -> list[dict]:
    return [*nvfp4_cases(pool), *amax_cases(pool), *exponent_cases(pool), *bfloat16_cases(pool)]
