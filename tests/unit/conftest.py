"""Float64 numpy references that several test files use."""

from collections.abc import Callable

import numpy as np
import pytest

from jaxq.integer import IntegerFormat


def _round_trip(w: np.ndarray, fmt: IntegerFormat, ratio: np.ndarray | float = 1.0) -> np.ndarray:
    out = np.empty(w.shape)
    block = len(w) if fmt.block_size == -1 else fmt.block_size
    ratios = np.broadcast_to(ratio, (-(-len(w) // block), w.shape[1]))
    for i, factor in enumerate(ratios):
        rows = np.asarray(w[i * block : (i + 1) * block], np.float64)
        if fmt.use_zero_point:
            lo, hi = np.minimum(rows.min(axis=0), 0) * factor, np.maximum(rows.max(axis=0), 0) * factor
            s, low, high = (hi - lo) / (2**fmt.num_bits - 1), 0, 2**fmt.num_bits - 1
            s = np.where(s > 0, s, 1)
            zp = np.rint(-lo / s)
        else:
            s, low, high = factor * abs(rows).max(axis=0) / (2 ** (fmt.num_bits - 1) - 1), -(2**fmt.num_bits) // 2, None
            s, zp, high = np.where(s > 0, s, 1), 0, low * -1 - 1
        s = s.astype(fmt.scale_dtype).astype(np.float64)
        out[i * block : (i + 1) * block] = (np.clip(np.rint(rows / s) + zp, low, high) - zp) * s
    return out


@pytest.fixture(scope="session")
def round_trip() -> Callable[..., np.ndarray]:
    """``round_trip(w, fmt, ratio)``: what is left of ``w``, in float64."""
    return _round_trip
