"""AWQ's magnitudes of weights by numpy, in float64."""

import numpy as np


def blocks_of(w: np.ndarray, block_size: int | None) -> list[np.ndarray]:
    """Consecutive rows, the last block ragged, in float64."""
    size = len(w) if block_size in (None, -1) else block_size
    return [w[i : i + size].astype(np.float64) for i in range(0, len(w), size)]


def weight_scale(w: np.ndarray, block_size: int | None) -> np.ndarray:
    """Mean over columns of ``|w| / max|block|``."""
    blocks = [np.abs(block) for block in blocks_of(w, block_size)]
    return np.concatenate([(b / np.where(b.max(axis=0) > 0, b.max(axis=0), 1)).mean(axis=1) for b in blocks])
