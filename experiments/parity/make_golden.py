"""Write what NVIDIA ModelOpt computes on small inputs, so that jaxq can be compared with it where it is not installed.

    python experiments/parity/make_golden.py        # a Python with nvidia-modelopt[onnx]; a few seconds, CPU only

Writes integer.npz, packing.npz, awq.npz and pages.npz into tests/parity/golden (format: `Pool`). Each case names the
reasons why jaxq gives something else on purpose; REASONS says what they mean, the tests in tests/parity what jaxq does
instead.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from golden_awq import awq_cases
from golden_integer import integer_cases
from golden_packing import packing_cases
from golden_pages import page_cases
from golden_pool import Pool, producer

GOLDEN = Path(__file__).parents[2] / "tests" / "parity" / "golden"

REASONS = {
    "scale_floor": "s is at least 1e-5, so weights below 7e-5 lose resolution and below 5e-6 become zeros",
    "zero_block": "a block of zeros gets s = 1e-5 (symmetric) or 1e-5 / q_max (zero point); its codes are zeros anyway",
    "range_without_zero": "s = (max - min) / q_max while zp is cut to [0, q_max]: a block of one sign saturates",
    "alpha_ignored": "alpha has no effect with a zero point",
    "int8_wrap": "8-bit codes with a zero point are cast to int8: 128..255 come out, and dequantize, as -128..-1",
    "overflow": "max - min overflows: the scale is infinite and the weights come back as NaN",
    "half_division": "float16: w / s is rounded to float16 before it is rounded to an integer, and so ties differ",
    "strided_blocks": "blocks are taken from every (c_in / block_size)-th row instead of consecutive rows",
    "ties_away": "the C++ packer rounds ties away from zero, the Python one to even",
    "step_ignored": "awqlite_alpha_step is accepted, but the candidates stay 0, 0.1, ..., 1",
    "strided_amax": "get_amax on axis 0 takes every (d0 / block_size)-th row of a column instead of consecutive rows",
    "log2_rounds": "log2 in float32 of a number just above 448 * 2^k rounds to k: the exponent is one too small",
    "scale_dtype": "scales of a bfloat16 weight are float32",
    "unscaled_activations": "awq_full multiplies the scaled weight with unscaled activations in its clip search",
}


def write(path: Path, pool: Pool, cases: list[dict]) -> None:
    used = sorted({reason for case in cases for reason in case.get("reasons", [])})
    meta = {**producer(), "reasons": {name: REASONS[name] for name in used}, "cases": cases}
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), floats=pool.floats(), codes=pool.codes())
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=GOLDEN)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    files = {"integer": integer_cases, "packing": packing_cases, "awq": awq_cases, "pages": page_cases}
    for name, make in files.items():
        pool = Pool()
        write(output / f"{name}.npz", pool, make(pool))


if __name__ == "__main__":
    sys.exit(main())
