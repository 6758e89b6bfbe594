"""Mixed precision: choose a format for each weight so that the sum of losses is small within a budget of bytes.

Source of the method: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers" (1988): steps
along the lower convex hulls of all weights, in the order of the loss that a byte saves.
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
    """One format of a weight, with its size and loss.

    Attributes:
        nbytes: Size of the weight in this format, at least 0.
        loss: Loss of accuracy in this format, in a unit common to all weights.
    """

    nbytes: int
    loss: float


@jit
def relative_errors(
    d: Float[Array, "c_in c_out"], w: Float[Array, "c_in c_out"], h: Float[Array, "c_in c_in"] | None
) -> Float[Array, "c_out"]:
    """Relative output error of each column: ``diag(D' H D) / diag(W' H W)``; NaN where the output is zero.

    Args:
        d: Weight error.
        w: Weight.
        h: Second moment of the activation; None for the errors of the weights themselves (``H = I``).

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
    """Geometric mean of columns' relative errors, without those of NaN; 0 where no error is left.

    The geometric mean follows the harm to the model better than the mean error over the mean energy, which a few
    columns or tokens of high energy dominate in models with massive activations. Errors below `_FLOOR` of their mean
    count as this: columns that a format stores exactly lower the result, and do not make it 0.

    Example:
        >>> round(typical_error([0.01, 0.04, float("nan")]), 6)
        0.02
    """
    known = np.asarray(relative, np.float64)
    known = np.maximum(known[~np.isnan(known)], 0)
    if not known.any():
        return 0.0
    return float(np.exp(np.log(np.maximum(known, _FLOOR * known.mean())).mean()))


_FLOOR = 1e-4


def lower_hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the lower convex hull of loss over size, from the smallest option to the most exact.

    Of options with equal size and loss the first is on the hull.

    Example:
        >>> lower_hull([Option(4, 1.0), Option(5, 0.9), Option(6, 0.2), Option(8, 0.3)])
        [0, 2]
    """
    hull: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: (options[i].nbytes, options[i].loss, i)):
        if hull and options[i].loss >= options[hull[-1]].loss:
            continue
        # The middle one of three is above the hull where the first step saves no more per byte than both together.
        while len(hull) > 1 and _saving_per_byte(options, hull[-2], hull[-1]) <= _saving_per_byte(options, hull[-2], i):
            hull.pop()
        hull.append(i)
    return hull


def allocate(options: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """Choose an option for each weight, with a small sum of losses within a budget of bytes.

    Every weight begins with its smallest option. Steps along the hulls follow in the order of the loss that a byte
    saves; a weight whose next step exceeds the budget takes no more. Up to the first such step no other choice of as
    few bytes has a smaller sum of losses. The steps after it use what is left of the budget.

    Args:
        options: The options of each weight, at least one for each.
        budget: Bytes of all weights together. Where the smallest options exceed it, they are chosen nevertheless.

    Returns:
        The index of each weight's option.

    Example:
        >>> allocate([[Option(4, 1.0), Option(8, 0.5)], [Option(4, 3.0), Option(8, 0.1)]], 12)
        [0, 1]
    """
    hulls = [lower_hull(weight) for weight in options]
    position = [0] * len(hulls)
    left = budget - sum(weight[hull[0]].nbytes for weight, hull in zip(options, hulls, strict=True))
    # A heap with the next step of each weight, the one with the greatest saving per byte on top.
    steps = [(-_saving_per_byte(options[i], *hull[:2]), i) for i, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, i = heapq.heappop(steps)
        old, new = hulls[i][position[i] : position[i] + 2]
        cost = options[i][new].nbytes - options[i][old].nbytes
        if cost > left:
            continue
        left, position[i] = left - cost, position[i] + 1
        if position[i] + 1 < len(hulls[i]):
            heapq.heappush(steps, (-_saving_per_byte(options[i], *hulls[i][position[i] : position[i] + 2]), i))
    return [hull[i] for hull, i in zip(hulls, position, strict=True)]


def _saving_per_byte(options: Sequence[Option], old: int, new: int) -> float:
    """Loss saved per byte by the step from one option to a larger one."""
    return (options[old].loss - options[new].loss) / (options[new].nbytes - options[old].nbytes)
