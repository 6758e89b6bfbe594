"""Golden cases of the functions that pack 4-bit codes into bytes."""

import numpy as np
from golden_pool import Pool
from modelopt.onnx.quantization import quant_utils  # pyright: ignore[reportMissingImports]


def inputs() -> dict[str, np.ndarray]:
    """Arrays to pack: in range, out of range, ties, odd numbers of elements."""
    rng = np.random.default_rng(11)
    return {
        "codes_8x6": rng.integers(-8, 8, (8, 6)).astype(np.int8),
        "codes_4x5": rng.integers(-8, 8, (4, 5)).astype(np.int8),
        "codes_3x5": rng.integers(-8, 8, (3, 5)).astype(np.int8),
        "unsigned_3x5": rng.integers(0, 16, (3, 5)).astype(np.uint8),
        "beyond_4x4": rng.uniform(-20, 20, (4, 4)).astype(np.float32),
        "ties_2x19": np.stack([np.arange(-9, 10) + 0.5, np.arange(-9, 10) - 0.5]).astype(np.float32),
        "half_4x4": (rng.uniform(-10, 10, (4, 4))).astype(np.float16),
        "one": np.array([3.0], np.float32),
    }


def packing_cases(pool: Pool) -> list[dict]:
    cases = []
    for name, array in inputs().items():
        place = pool.add(array)
        for signed in (True, False):
            python = quant_utils.pack_float32_to_4bit_optimized(array, signed)
            cpp = quant_utils.pack_float32_to_4bit_cpp_based(array, signed)
            parameters = {"signed": signed}
            cases += [
                {"id": f"optimized-{name}-{signed}", "function": "pack_float32_to_4bit_optimized", "input": place,
                 "parameters": parameters, "packed": pool.add(python), "reasons": []},
                {"id": f"cpp-{name}-{signed}", "function": "pack_float32_to_4bit_cpp_based", "input": place,
                 "parameters": parameters, "packed": pool.add(cpp),
                 "reasons": [] if np.array_equal(python, cpp) else ["ties_away"]},
            ]  # fmt: skip
        if array.ndim == 2 and len(array) % 2 == 0:
            packed = quant_utils.pack_weights_to_int4(array)
            cases.append({"id": f"weights-{name}", "function": "pack_weights_to_int4", "input": place,
                          "parameters": {}, "packed": pool.add(packed), "reasons": []})  # fmt: skip
    return cases
