"""Keep a method's result only where its output error is not greater than that of round to nearest."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.methods.choose import Choice, Part, choose
from jaxq.methods.grids import IDENTITY
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
    """A method's choices and their errors, with round to nearest in place of weights on which the method does worse.

    Searches compare on a sample of columns, or block by block. This comparison is over all columns and tokens, weight
    by weight. Some weights are kept or replaced only together: all siblings where they share a scale of the input
    channels, and all columns of a part where they share a scale of the whole weight that round to nearest lacks.

    Args:
        parts: All weights that multiply an activation, those of one format side by side.
        widths: The number of columns of each weight in each part.
        moments: Moments of the activation; None without calibration data.
        method: The method.
        spec: Settings of the method.
        targets: Corrected targets of the parts (`jaxq.methods.targets`). The method approximates them, and errors are
            measured against them; round to nearest still rounds the weights. None without drift.

    Returns:
        A choice and its errors for each part.

    Raises:
        JaxqError: the method needs moments, and there are none.
    """
    goals = parts if targets is None else [(t, fmt) for t, (_, fmt) in zip(targets, parts, strict=True)]
    choices = choose(method, goals, moments, spec)
    errors = _measure_all(parts, choices, moments, targets)
    if moments is None or method == ROUND_TO_NEAREST:
        return choices, errors
    # Most often no weight loses: then round to nearest need not be computed.
    if not any(lost.any() for lost in _lost_columns(choices, errors, widths, [False] * len(parts))):
        return choices, errors
    plain = choose(ROUND_TO_NEAREST, parts, None, spec)
    together = [not _same_tensor_scale(*pair) for pair in zip(choices, plain, strict=True)]
    lost_columns = _lost_columns(choices, errors, widths, together)
    if not any(lost.any() for lost in lost_columns):
        return choices, errors
    choices = [_replace_columns(*args) for args in zip(choices, plain, lost_columns, strict=True)]
    return choices, _measure_all(parts, choices, moments, targets)


def _same_tensor_scale(choice: Choice, plain: Choice) -> bool:
    """True if both have the same scale of the whole weight, or one of them has none."""
    scale, plain_scale = choice.quantized.s2, plain.quantized.s2
    return scale is None or plain_scale is None or float(scale) == float(plain_scale)


def _lost_columns(
    choices: Sequence[Choice], errors: Sequence[Errors], widths: Sequence[Sequence[int]], together: Sequence[bool]
) -> list[np.ndarray]:
    """For each part a mask of the columns to replace by round to nearest.

    Args:
        choices: The method's choices.
        errors: Their errors.
        widths: The number of columns of each weight in each part.
        together: For each part, whether all its columns are kept or replaced together.
    """
    gains = [np.asarray(e.output_rtn, np.float64) - np.asarray(e.output, np.float64) for e in errors]
    # With a scale of the input channels, which the activation is divided by, all siblings go together.
    if float(choices[0].alpha) != IDENTITY:
        better = sum(map(np.sum, gains)) >= 0  # false for NaN
        return [np.full(gain.size, not better) for gain in gains]
    lost_columns = []
    for gain, whole, part_widths in zip(gains, together, widths, strict=True):
        # Sum the gain over the columns of each weight: reduceat takes the first column of each.
        column_counts = [gain.size] if whole else list(part_widths)
        better = np.add.reduceat(gain, np.cumsum([0, *column_counts[:-1]])) >= 0
        lost_columns.append(np.repeat(~better, column_counts))
    return lost_columns


def _replace_columns(choice: Choice, plain: Choice, lost: np.ndarray) -> Choice:
    """The choice with the lost columns of round to nearest; a choice that lost all columns loses its scale too."""
    if not lost.any():
        return choice
    if lost.all():
        return plain
    # Both have the same scale of the whole weight here, or none, so that only arrays with columns differ.
    kept = replace(choice.quantized, s2=plain.quantized.s2)
    quantized = jax.tree.map(
        lambda rtn, columns: jnp.where(lost, rtn, columns) if rtn.ndim else columns, plain.quantized, kept
    )
    return Choice(quantized, choice.s, choice.alpha, jnp.where(lost, plain.clip_ratio, choice.clip_ratio))


def _measure_all(
    parts: Sequence[Part], choices: Sequence[Choice], moments: Moments | None, targets: Sequence[jax.Array] | None
) -> list[Errors]:
    """Errors of the choice for each part."""
    return [
        measure(w, choice, moments, fmt, target)
        for (w, fmt), choice, target in zip(parts, choices, targets or [None] * len(parts), strict=True)
    ]
