"""Float64 numpy references that several test files use."""

from collections.abc import Callable

import numpy as np
import pytest

from jaxq.formats.integers import IntegerFormat


def _scales(rows: np.ndarray, fmt: IntegerFormat, factor: np.ndarray) -> np.ndarray:
    """Scale of each column of one block; zero where the block is."""
    top = abs(rows).max(axis=0)
    if fmt.use_zero_point:
        with_zero = np.concatenate([rows, 0 * rows[:1]])
        return factor * np.ptp(with_zero, axis=0) / (2**fmt.num_bits - 1)
    if fmt.full_range:
        return np.where((rows == top).any(axis=0), -1, 1) * factor * top / 2 ** (fmt.num_bits - 1)
    return factor * top / (2 ** (fmt.num_bits - 1) - 1)


def _round_trip(w: np.ndarray, fmt: IntegerFormat, ratio: np.ndarray | float = 1.0) -> np.ndarray:
    out = np.empty(w.shape)
    block = len(w) if fmt.block_size == -1 else fmt.block_size
    ratios = np.broadcast_to(ratio, (-(-len(w) // block), w.shape[1]))
    for i, factor in enumerate(ratios):
        rows = np.asarray(w[i * block : (i + 1) * block], np.float64)
        s = _scales(rows, fmt, factor)
        s = np.where(s == 0, 1, s)
        zp = np.rint(-np.minimum(rows.min(axis=0), 0) * factor / s) if fmt.use_zero_point else 2.0 ** (fmt.num_bits - 1)
        s = s.astype(fmt.scale_dtype).astype(np.float64)
        out[i * block : (i + 1) * block] = (np.clip(np.rint(rows / s) + zp, 0, 2**fmt.num_bits - 1) - zp) * s
    return out


@pytest.fixture(scope="session")
def round_trip() -> Callable[..., np.ndarray]:
    """``round_trip(w, fmt, ratio)``: what is left of ``w``, in float64."""
    return _round_trip
