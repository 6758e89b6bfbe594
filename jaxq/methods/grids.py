"""The candidates of AWQ's searches: exponents alpha and clip ratios."""

import numpy as np

from jaxq.errors import JaxqError

IDENTITY = -1.0
"""The alpha that stands for "no scaling" in a list of candidates."""

_MIN_STEP = 0.001  # finer grids take long and gain nothing


def alpha_grid(alpha_step: float) -> tuple[float, ...]:
    """Candidates for alpha: `IDENTITY` first, so that it wins ties, then 0, step, ... up to 1.

    Raises:
        JaxqError: the step is not in [0.001, 1].

    Example:
        >>> alpha_grid(0.5)
        (-1.0, 0.0, 0.5, 1.0)
    """
    if not _MIN_STEP <= alpha_step <= 1:
        raise JaxqError(f"alpha_step is {alpha_step}: give a step from {_MIN_STEP} to 1")
    return (IDENTITY, *(round(float(a), 6) for a in np.arange(0, 1 + alpha_step / 2, alpha_step) if a <= 1 + 1e-9))


def ratio_grid(min_clip_ratio: float, clip_step: float) -> tuple[float, ...]:
    """Candidates for the clip ratio: 1 first, so that it wins ties, then 1 - step, ... down to ``min_clip_ratio``.

    Raises:
        JaxqError: ``min_clip_ratio`` is not in (0, 1], or ``clip_step`` not in [0.001, 1].

    Example:
        >>> ratio_grid(0.8, 0.1)
        (1.0, 0.9, 0.8)
    """
    if not 0 < min_clip_ratio <= 1:
        raise JaxqError(f"min_clip_ratio is {min_clip_ratio}: give the least clip ratio, in (0, 1]")
    if not _MIN_STEP <= clip_step <= 1:
        raise JaxqError(f"clip_step is {clip_step}: give a step from {_MIN_STEP} to 1")
    count = int((1 - min_clip_ratio) / clip_step + 1e-9)
    return tuple(round(1.0 - i * clip_step, 6) for i in range(count + 1))
