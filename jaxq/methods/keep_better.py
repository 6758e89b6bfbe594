"""Keep what a method chose only where it does better than plain rounding."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.methods.awq import IDENTITY
from jaxq.methods.choose import Choice, Part, choose
from jaxq.methods.measure import Errors, measure
from jaxq.methods.registry import ROUND_TO_NEAREST, Method, MethodSpec
from jaxq.numerics.moments import Moments


def keep_better(
    parts: Sequence[Part],
    widths: Sequence[Sequence[int]],
    moments: Moments | None,
    method: Method,
    spec: MethodSpec,
    targets: Sequence[jax.Array] | None = None,
) -> tuple[list[Choice], list[Errors]]:
    """The method's choices and their errors; plain rounding's in their place where its output error is smaller.

    Searches look at a sample of columns or at blocks one by one; this comparison is over all columns and tokens, weight
    by weight. Weights that were scaled share a factor with their siblings, and where block scales are over one scale of
    all columns, which is not that of plain rounding, they share that: these are kept or not together. With targets the
    method comes near these, and errors are those against them; plain rounding rounds the weights.
    """
    wanted = parts if targets is None else [(t, fmt) for t, (_, fmt) in zip(targets, parts, strict=True)]
    choices = choose(method, wanted, moments, spec)
    errors = _measured(parts, choices, moments, targets)
    if moments is None or method == ROUND_TO_NEAREST:
        return choices, errors
    if not any(each.any() for each in _lost(choices, errors, widths, [False] * len(parts))):
        return choices, errors
    plain = choose(ROUND_TO_NEAREST, parts, None, spec)
    together = [not _same_second(*each) for each in zip(choices, plain, strict=True)]
    lost = _lost(choices, errors, widths, together)
    if not any(each.any() for each in lost):
        return choices, errors
    choices = [_swapped(*each) for each in zip(choices, plain, lost, strict=True)]
    return choices, _measured(parts, choices, moments, targets)


def _same_second(choice: Choice, plain: Choice) -> bool:
    """Whether the scales of the blocks are over the same scale of the weight, if they are over one."""
    one, other = choice.quantized.s2, plain.quantized.s2
    return one is None or other is None or float(one) == float(other)


def _lost(
    choices: Sequence[Choice], errors: Sequence[Errors], widths: Sequence[Sequence[int]], together: Sequence[bool]
) -> list[np.ndarray]:
    """For each column of each part whether plain rounding does better on all that is kept or not together with it."""
    gains = [np.asarray(e.output_rtn, np.float64) - np.asarray(e.output, np.float64) for e in errors]
    if float(choices[0].alpha) != IDENTITY:
        better = sum(map(np.sum, gains)) >= 0  # false of NaN
        return [np.full(gain.size, not better) for gain in gains]
    lost = []
    for gain, whole, each in zip(gains, together, widths, strict=True):
        shares = [gain.size] if whole else list(each)
        better = np.add.reduceat(gain, np.cumsum([0, *shares[:-1]])) >= 0
        lost.append(np.repeat(~better, shares))
    return lost


def _swapped(choice: Choice, plain: Choice, lost: np.ndarray) -> Choice:
    """The columns of ``plain`` where the choice lost, with which a scale of all channels goes too."""
    if not lost.any():
        return choice
    if lost.all():
        return plain
    held = replace(choice.quantized, s2=plain.quantized.s2)
    quantized = jax.tree.map(lambda new, old: jnp.where(lost, new, old) if new.ndim else old, plain.quantized, held)
    return Choice(quantized, choice.s, choice.alpha, jnp.where(lost, plain.clip_ratio, choice.clip_ratio))


def _measured(
    parts: Sequence[Part], choices: Sequence[Choice], moments: Moments | None, targets: Sequence[jax.Array] | None
) -> list[Errors]:
    each = targets or [None] * len(parts)
    return [
        measure(w, choice, moments, fmt, target) for (w, fmt), choice, target in zip(parts, choices, each, strict=True)
    ]
