"""Tokens per second of language models in onnxruntime, measured in turns."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxq.progress import Progress, silent
from jaxq.runtime.language_model import LanguageModel, TokenStream, fixed_size

PROMPT, NEXT, REPEATS = 128, 32, 5


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one sequence; medians over repeats.

    Attributes:
        prefill: Of a prompt, all tokens at a time.
        decode: Of the tokens behind it, one at a time; None for a model without keys and values of earlier tokens.
        prompt, tokens, repeats: Tokens of the prompt and behind it, and number of repeats.
    """

    prefill: float
    decode: float | None
    prompt: int = PROMPT
    tokens: int = NEXT
    repeats: int = REPEATS


def measure_speeds(models: Sequence[LanguageModel], progress: Progress = silent, repeats: int = REPEATS) -> list[Speed]:
    """Speeds of models; in each repeat all of them take turns, so that other work on the machine slows all alike.

    Args:
        models: Language models with the same token ids.
        progress: Called at the beginning and after each turn.
        repeats: Number of repeats.
    """
    advance = progress("speed", len(models) * (repeats + 1))
    times: list[list[tuple[float, float]]] = [[] for _ in models]
    length = min([PROMPT, *(size for model in models if (size := fixed_size(model.spec, 1)))])
    rng = np.random.default_rng(0)
    ids = rng.integers(0, min(model.vocabulary for model in models), (1, length + NEXT))
    for _ in range(repeats + 1):  # the first turn warms up
        for i, model in enumerate(models):
            times[i].append(_seconds(model, ids, length))
            advance()
    return [_speed(model, rows[1:], length, repeats) for model, rows in zip(models, times, strict=True)]


def _seconds(model: LanguageModel, ids: np.ndarray, length: int) -> tuple[float, float]:
    """Seconds of the prompt, and of the tokens behind it."""
    stream = TokenStream(model)
    rows = np.repeat(ids, fixed_size(model.spec, 0) or 1, axis=0)
    start = time.perf_counter()
    stream.logits(rows[:, :length])
    middle = time.perf_counter()
    for count in range(1, NEXT + 1) if model.caches else ():
        stream.logits(rows[:, : length + count])
    return middle - start, time.perf_counter() - middle


def _speed(model: LanguageModel, rows: Sequence[tuple[float, float]], length: int, repeats: int) -> Speed:
    prefill = length / statistics.median(first for first, _ in rows)
    decode = NEXT / statistics.median(rest for _, rest in rows) if model.caches else None
    return Speed(prefill, decode, length, NEXT if model.caches else 0, repeats)
