"""Samples of several sources, mixed by share."""

from collections.abc import Sequence

import numpy as np

from jaxq.data.texts import spread


def share_counts(shares: Sequence[float], samples: int) -> list[int]:
    """Number of samples of each source; together ``samples``.

    Each source gets its share rounded down; what is left goes to the largest fractions, one sample each.

    Args:
        shares: Weights of the sources, in any unit: not negative, and one of them above 0.
        samples: Number of samples.

    Example:
        >>> share_counts([3, 1], 32)
        [24, 8]
        >>> share_counts([1, 1, 1], 4)
        [2, 1, 1]
    """
    exact = [samples * share / sum(shares) for share in shares]
    counts = [int(count) for count in exact]
    by_fraction = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_fraction[: samples - sum(counts)]:
        counts[i] += 1
    return counts


def mix(sources: Sequence[np.ndarray], shares: Sequence[float], samples: int) -> list[np.ndarray]:
    """Rows of each source, evenly spaced over it; a source with fewer rows than its share gives all it has.

    Args:
        sources: Token ids [rows, length] of each source.
        shares: As for `share_counts`.
        samples: Number of samples together.

    Example:
        >>> [part.ravel().tolist() for part in mix([np.arange(9)[:, None], np.arange(4)[:, None]], [2, 1], 3)]
        [[0, 8], [0]]
    """
    counts = share_counts(shares, samples)
    return [spread(rows, count) for rows, count in zip(sources, counts, strict=True)]
