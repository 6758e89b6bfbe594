"""Mixed precision: which weight gets how many bytes, so that the losses' sum is least within a budget.

Source of the method: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers" (1988): along the
lower convex hulls of all weights, by the greatest fall of the loss per byte.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxq.numerics.jit import jit
from jaxq.numerics.moments import output_error


@dataclass(frozen=True)
class Option:
    """What a weight can be held as.

    Attributes:
        nbytes: Its size, at least 0.
        loss: What that costs in accuracy, in a unit common to all weights.
    """

    nbytes: int
    loss: float


@jit
def relative_errors(
    d: Float[Array, "c_in c_out"], w: Float[Array, "c_in c_out"], h: Float[Array, "c_in c_in"] | None
) -> Float[Array, "c_out"]:
    """Squared error of each column's output over the energy of that output; of the weights themselves without ``h``.

    NaN where the output is zero.

    Example:
        >>> w = jnp.array([[2.0, 0.0], [0.0, 0.0]])
        >>> relative_errors(0.1 * w, w, jnp.eye(2)).tolist()
        [0.010000000707805157, nan]
    """
    w = w.astype(jnp.float32)
    if h is None:
        error, energy = jnp.sum(d * d, axis=0), jnp.sum(w * w, axis=0)
    else:
        error, energy = output_error(d, h), output_error(w, h)
    return jnp.where(energy > 0, error / energy, jnp.nan)


def typical_error(relative: np.ndarray | Sequence[float]) -> float:
    """The geometric mean of columns' relative errors, those of NaN left out; 0 where none is left.

    What a weight's rounding does to a model goes roughly by this. The mean error over the mean energy misses where a
    few columns or tokens hold most of the energy, as in models with massive activations. Errors far below the mean
    count as `_LEAST` of it: columns that a format holds exactly make it better, and others still count.

    Example:
        >>> round(typical_error([0.01, 0.04, float("nan")]), 6)
        0.02
    """
    known = np.asarray(relative, np.float64)
    known = np.maximum(known[~np.isnan(known)], 0)
    if not known.any():
        return 0.0
    return float(np.exp(np.log(np.maximum(known, _LEAST * known.mean())).mean()))


_LEAST = 1e-4


def lower_hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the lower convex hull, from the smallest to the most exact; of equal ones the first.

    Example:
        >>> lower_hull([Option(4, 1.0), Option(5, 0.9), Option(6, 0.2), Option(8, 0.3)])
        [0, 2]
    """
    hull: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: (options[i].nbytes, options[i].loss, i)):
        if hull and options[i].loss >= options[hull[-1]].loss:
            continue
        while len(hull) > 1 and _fall(options, hull[-2], hull[-1]) <= _fall(options, hull[-2], i):
            hull.pop()
        hull.append(i)
    return hull


def allocate(options: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """Which option each weight gets.

    Every weight begins with its smallest option. The step along a hull that lowers the loss most for its bytes is taken
    first; a step that does not fit any more ends its weight's. Up to the first step that does not fit nothing of so few
    bytes has a smaller sum of losses; what fits after it fills up the budget.

    Args:
        options: Of each weight, at least one.
        budget: Bytes of all weights together; where the smallest options are larger, these are the outcome.

    Returns:
        An index for each weight.

    Example:
        >>> allocate([[Option(4, 1.0), Option(8, 0.5)], [Option(4, 3.0), Option(8, 0.1)]], 12)
        [0, 1]
    """
    hulls = [lower_hull(each) for each in options]
    at = [0] * len(hulls)
    left = budget - sum(each[hull[0]].nbytes for each, hull in zip(options, hulls, strict=True))
    steps = [(-_fall(options[i], *hull[:2]), i) for i, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, i = heapq.heappop(steps)
        old, new = hulls[i][at[i] : at[i] + 2]
        cost = options[i][new].nbytes - options[i][old].nbytes
        if cost > left:
            continue
        left, at[i] = left - cost, at[i] + 1
        if at[i] + 1 < len(hulls[i]):
            heapq.heappush(steps, (-_fall(options[i], *hulls[i][at[i] : at[i] + 2]), i))
    return [hull[place] for hull, place in zip(hulls, at, strict=True)]


def _fall(options: Sequence[Option], old: int, new: int) -> float:
    """How much the loss falls for each byte."""
    return (options[old].loss - options[new].loss) / (options[new].nbytes - options[old].nbytes)
