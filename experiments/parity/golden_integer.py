"""Golden cases of find_scales, rtn, dq_tensor and quant_tensor."""

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from golden_pool import Pool, Reference
from modelopt.onnx.quantization import quant_utils  # pyright: ignore[reportMissingImports]

FLOOR = 1e-5


@dataclass(frozen=True)
class Parameters:
    """A case's arguments. ModelOpt's functions refuse -1; its callers replace it by the axis' length, as here."""

    block_size: int
    quantize_axis: int = 0
    alpha: float = 1.0
    use_zero_point: bool = False
    num_bits: int = 4

    def q_max(self) -> int:
        return 2**self.num_bits - 1 if self.use_zero_point else 2 ** (self.num_bits - 1) - 1


def weights() -> dict[str, np.ndarray]:
    """Inputs by name; the first part of a name is the family."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    ties = np.arange(-8, 8, 0.5, dtype=np.float32)[:, None] * np.array([1, 0.25, 2], np.float32)
    ties[0] = ties[-1] = ties.max(axis=0) * np.float32(7 / 7.5)  # the greatest weight is 7 steps: s is a power of two
    zeros = normal(64, 4)
    zeros[:32, 0] = 0
    zeros[:, 2] = 0
    huge = normal(64, 4)
    huge[5] *= np.float32(1e30)
    wide_range = normal(32, 2) * np.float32(1e38)
    wide_range[3], wide_range[4] = 3e38, -3e38
    mixed = normal(64, 4) * np.array([1, 1e-5, 5e-6, 1e-20], np.float32)
    return {
        "normal_64x6": normal(64, 6),
        "ragged_70x5": normal(70, 5),
        "odd_33x3": normal(33, 3),
        "column_48x1": normal(48, 1),
        "row_1x40": normal(1, 40),
        "long_260x2": normal(260, 2),
        "half_64x6": normal(64, 6).astype(np.float16),
        "half_ragged_70x5": (normal(70, 5) * np.float32(0.02)).astype(np.float16),
        "zeros_64x4": zeros,
        "ties_32x3": ties,
        "huge_64x4": huge,
        "range_32x2": wide_range,
        "tiny_64x4": mixed,
        "positive_32x3": np.float32(1) + rng.random((32, 3)).astype(np.float32) / 10,
        "negative_32x3": -np.float32(1) - rng.random((32, 3)).astype(np.float32) / 10,
        "constant_32x1": np.full((32, 1), 0.3, np.float32),
    }


def parameters() -> dict[str, list[Parameters]]:
    """The arguments that each weight is run with."""
    everything = [
        Parameters(block, axis, 1.0, zp, bits)
        for block, axis, zp, bits in product((16, 32, 128, -1), (0, 1), (False, True), (4, 8))
    ]
    some = [Parameters(block, axis, 1.0, zp) for block, axis, zp in product((16, -1), (0, 1), (False, True))]
    all_bits = [Parameters(16, use_zero_point=zp, num_bits=b) for zp, b in product((False, True), (2, 3, 5, 6, 7))]
    both = [Parameters(32, use_zero_point=zp) for zp in (False, True)]
    return {
        "normal_64x6": [
            *everything,
            *all_bits,
            *(Parameters(16, alpha=a) for a in (0.5, 0.85)),
            Parameters(16, 0, 0.5, True),
        ],
        "ragged_70x5": some,
        "odd_33x3": some,
        "column_48x1": some,
        "row_1x40": some,
        "long_260x2": [Parameters(128, use_zero_point=zp, num_bits=b) for zp, b in product((False, True), (4, 8))],
        "half_64x6": [Parameters(16, use_zero_point=zp) for zp in (False, True)] + [Parameters(16, alpha=0.85)],
        "half_ragged_70x5": some,
        "zeros_64x4": both,
        "ties_32x3": [Parameters(32), Parameters(32, alpha=0.5), Parameters(32, use_zero_point=True)],
        "huge_64x4": both,
        "range_32x2": both,
        "tiny_64x4": [*both, Parameters(32, num_bits=8)],
        "positive_32x3": both,
        "negative_32x3": both,
        "constant_32x1": both,
    }


def in_blocks(w: np.ndarray, p: Parameters) -> np.ndarray:
    """Blocks [lines, n_blocks, block] in float64, a ragged end filled with zeros."""
    lines = (w.T if p.quantize_axis == 0 else w).astype(np.float64)
    block = lines.shape[1] if p.block_size == -1 else p.block_size
    return np.pad(lines, ((0, 0), (0, -lines.shape[1] % block))).reshape(len(lines), -1, block)


def reasons(w: np.ndarray, p: Parameters, codes_wrap: bool) -> list[str]:
    """Why jaxq differs on this case, judged from the input alone (and from whether a code exceeds 127)."""
    blocks = in_blocks(w, p)
    lo, hi = blocks.min(-1), blocks.max(-1)
    if p.use_zero_point:
        extent, floor = hi - lo, FLOOR
    else:
        extent, floor = np.abs(blocks).max(-1) * p.alpha / p.q_max(), FLOOR
    zero = (lo == 0) & (hi == 0)
    found = {
        "zero_block": zero.any(),
        "scale_floor": ((extent < floor) & ~zero).any(),
        "range_without_zero": p.use_zero_point and ((lo > 0) | (hi < 0)).any(),
        "alpha_ignored": p.use_zero_point and p.alpha != 1,
        "int8_wrap": codes_wrap,
        "overflow": p.use_zero_point and (hi - lo).max() > np.finfo(w.dtype).max,
        "half_division": w.dtype == np.float16,
    }
    return [name for name, holds in found.items() if holds]


def integer_case(pool: Pool, name: str, w: np.ndarray, place: Reference, p: Parameters) -> dict:
    block = quant_utils.update_block_size(p.block_size, w=w, quantize_axis=p.quantize_axis)
    zp: Any  # ModelOpt's annotations leave out None
    with np.errstate(over="ignore", invalid="ignore"):
        s, zp = quant_utils.find_scales(w, block, p.quantize_axis, p.alpha, p.use_zero_point, p.num_bits)
        codes = quant_utils.rtn(w, s, block, p.quantize_axis, zp, p.num_bits)
        dq = quant_utils.dq_tensor(codes, s, block, p.quantize_axis, zp)
        whole = quant_utils.quant_tensor(w, block, p.quantize_axis, p.alpha, p.use_zero_point, p.num_bits)
    parts: tuple[Any, ...] = (codes, s, zp)
    for part, want in zip(whole, parts, strict=True):
        assert part is want or np.array_equal(np.asarray(part), want)
    return {
        "id": "-".join([name, *(f"{k}={v}" for k, v in asdict(p).items() if v != Parameters(0).__dict__[k])]),
        "parameters": asdict(p),
        "reasons": reasons(w, p, codes_wrap=p.use_zero_point and p.num_bits == 8 and bool((codes < 0).any())),
        "w": place,
        "s": pool.add(s),
        "zp": None if zp is None else pool.add(zp),
        "codes": pool.add(codes),
        "dq": pool.add(dq) if p.num_bits == 4 or "long" in name else None,
    }


def alpha_per_block_case(pool: Pool) -> dict:
    """alpha as an array: ModelOpt wants it flat, column by column; a jaxq array has the shape of the scales."""
    w = weights()["normal_64x6"]
    alpha: Any = np.random.default_rng(8).uniform(0.5, 1, (4, 6)).astype(np.float32)
    s, _ = quant_utils.find_scales(w, 16, alpha=alpha.T.ravel())
    return {"id": "alpha_per_block", "w": pool.add(w), "alpha": pool.add(alpha), "s": pool.add(s), "reasons": []}


def refused_cases() -> list[dict]:
    """Calls that ModelOpt refuses: what it raises for block_size -1, which only its callers understand."""
    found = []
    w = weights()["normal_64x6"]
    for function, call in {
        "find_scales": lambda: quant_utils.find_scales(w, -1),
        "quant_tensor": lambda: quant_utils.quant_tensor(w, -1),
    }.items():
        try:
            call()
        except Exception as error:
            found.append({"id": f"refused-{function}", "raises": f"{type(error).__name__}: {error}"})
    return found


def integer_cases(pool: Pool) -> list[dict]:
    cases: list[dict] = []
    inputs = weights()
    for name, runs in parameters().items():
        place = pool.add(inputs[name])
        cases += [integer_case(pool, name, inputs[name], place, p) for p in runs]
    return [*cases, alpha_per_block_case(pool), *refused_cases()]
