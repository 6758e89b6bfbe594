"""Text that a language model writes itself: token ids drawn from its own predictions, and kept in the cache folder.

A sample begins with the special tokens that the tokenizer puts before a text, and a token drawn evenly from the
vocabulary, special tokens left out. Each further token is drawn from the model's prediction. After an end-of-text token
a new text begins, with another token drawn evenly. (Liu et al. 2023, "LLM-QAT", draw training text alike.)
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxq.data.texts import load_tokenizer, special_tokens
from jaxq.errors import JaxqError
from jaxq.files.atomic import write_whole
from jaxq.runtime.language_model import LanguageModel, TokenStream, fixed_size
from jaxq.runtime.session import runtime

BATCH = 16
"""Samples that are drawn at a time: more are hardly faster, and a stopped run loses the samples that it was drawing."""

_VERSION = 1  # of the numbers that this module draws
_LOGIT_BYTES = 256 << 20  # most bytes of the logits of one run where a model without a cache gives those of all tokens
_CONFIGS = ("genai_config.json", "generation_config.json", "config.json")
_PROBED_STEPS = 3


@dataclass(frozen=True)
class Vocabulary:
    """The token ids of which drawn text is made.

    Attributes:
        before: Special tokens at the beginning of every sample.
        first: Ids of which the first token is drawn, sorted.
        ends: Ids after which a new text begins.
    """

    before: tuple[int, ...]
    first: np.ndarray
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        length: Tokens of a sample, special tokens included.
        seed: Seed of the random numbers; sample ``i`` is the same however many samples are drawn.
        temperature: Logits are divided by it: 1 draws from the model's own distribution.
    """

    length: int
    seed: int
    temperature: float = 1.0


def read_vocabulary(size: int, tokenizer: Path | None, folder: Path) -> Vocabulary:
    """The ids of a model's vocabulary, by its tokenizer and by the configurations in its folder.

    Args:
        size: Number of ids that the model reads and predicts.
        tokenizer: The ``tokenizer.json``; None where there is none: every id is then taken for text.
        folder: The folder with ``genai_config.json``, ``generation_config.json`` or ``config.json``, which name
            end-of-text tokens. A missing one is skipped.

    Raises:
        JaxqError: the tokenizer cannot be read, or shares no token of text with the model.
    """
    ends = tuple(sorted({i for name in _CONFIGS for i in _end_tokens(folder / name) if 0 <= i < size}))
    if tokenizer is None:
        return Vocabulary((), np.setdiff1d(np.arange(size), ends), ends)
    encoder = load_tokenizer(tokenizer)
    special = [i for i, token in encoder.get_added_tokens_decoder().items() if token.special]
    known = np.array(sorted(i for i in encoder.get_vocab().values() if i < size), np.int64)
    first = np.setdiff1d(known, [*special, *ends])
    if not first.size:
        raise JaxqError(f"tokenizer file {str(tokenizer)!r} has no token of text below {size}, the model's vocabulary")
    before = special_tokens(encoder)[0]
    return Vocabulary(tuple(i for i in before if i < size), first, ends)


class TextDrawer:
    """Draws samples from a model, and keeps them on disk.

    Args:
        model: The language model.
        vocabulary: Its token ids.
        model_hash: SHA-256 of the model's files.
        folder: Where finished samples are kept.
    """

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary, model_hash: str, folder: Path) -> None:
        self._model, self._vocabulary, self._folder = model, vocabulary, folder
        parts = (_VERSION, model_hash, vocabulary.before, vocabulary.ends, runtime().__version__)
        self._fixed_samples, self._fixed_length = fixed_size(model.spec, 0), fixed_size(model.spec, 1)
        self._key = hashlib.sha256(repr(parts).encode() + vocabulary.first.astype(np.int64).tobytes())

    def rows(self, drawing: Drawing, samples: int, advance: Callable[[], None]) -> np.ndarray:
        """Token ids int64 [samples, length].

        Args:
            drawing: Length, seed, temperature.
            samples: Number of samples.
            advance: Called ``steps`` times; see `steps`.

        Raises:
            JaxqError: the length leaves no token to draw, the model cannot be run or gives NaN, or the folder cannot
                be written.
        """
        self._check_length(drawing)
        parts = [self._part(drawing, start, stop, advance) for start, stop in self._ranges(drawing, samples)]
        return np.concatenate(parts)

    def steps(self, drawing: Drawing, samples: int) -> int:
        """Number of calls of ``advance`` in `rows`."""
        return drawing.length * sum(1 for _ in self._ranges(drawing, samples))

    def stand_in(self, drawing: Drawing, samples: int) -> tuple[np.ndarray, float]:
        """Random token ids of the shape that `rows` gives, and about the seconds that drawing would take.

        Raises:
            JaxqError: as `rows`.
        """
        self._check_length(drawing)
        random = np.random.default_rng(drawing.seed)
        ids = random.choice(self._vocabulary.first, (samples, drawing.length))
        ranges = list(self._ranges(drawing, samples))
        size = self._fixed_samples or ranges[0][1]
        step = self._seconds_of_step(random.choice(self._vocabulary.first, (size, drawing.length)), drawing)
        return ids, len(ranges) * drawing.length * step

    def _seconds_of_step(self, ids: np.ndarray, drawing: Drawing) -> float:
        """Seconds of a step in the middle of samples."""
        middle = max(1, drawing.length // 2 - _PROBED_STEPS)
        count = min(_PROBED_STEPS, drawing.length - middle)
        stream = TokenStream(self._model)
        stream.logits(ids[:, :middle])
        start = time.perf_counter()
        for step in range(1, count + 1):
            draw_tokens(stream.logits(ids[:, : middle + step]), np.full(len(ids), 0.5), drawing.temperature)
        return (time.perf_counter() - start) / count

    def _check_length(self, drawing: Drawing) -> None:
        if drawing.length < len(self._vocabulary.before) + 2:
            raise JaxqError(
                f"samples of {drawing.length} tokens have no room for drawn text beside "
                f"{len(self._vocabulary.before)} special tokens: give a greater length"
            )
        if self._fixed_length not in (None, drawing.length):
            raise JaxqError(
                f"the model takes samples of {self._fixed_length} tokens, and {drawing.length} are asked for: give "
                f"calib.length={self._fixed_length} eval.length={self._fixed_length}"
            )

    def _ranges(self, drawing: Drawing, samples: int) -> Iterator[tuple[int, int]]:
        """First and last sample of the batches."""
        batch = BATCH
        if not self._model.caches:
            batch = min(batch, max(1, _LOGIT_BYTES // (4 * drawing.length * self._model.vocabulary)))
        batch = self._fixed_samples or batch
        for start in range(0, samples, batch):
            yield start, min(start + batch, samples)

    def _part(self, drawing: Drawing, start: int, stop: int, advance: Callable[[], None]) -> np.ndarray:
        """Samples of one batch: from disk, or drawn and stored."""
        key = self._key.copy()
        key.update(repr((drawing, start, stop)).encode())
        path = self._folder / f"{key.hexdigest()[:32]}.npy"
        try:
            stored = np.load(path, allow_pickle=False)
            if stored.shape == (stop - start, drawing.length) and stored.dtype == np.int64:
                for _ in range(drawing.length):
                    advance()
                return stored
        except (OSError, ValueError, EOFError):
            pass  # not drawn yet, or damaged
        ids = self._draw(drawing, start, self._fixed_samples or stop - start, advance)[: stop - start]
        content = io.BytesIO()
        np.save(content, ids)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, content.getvalue())
        except OSError as error:
            raise JaxqError(
                f"cannot write to the cache {str(self._folder)!r}: {error}; give another cache_dir"
            ) from error
        return ids

    def _draw(self, drawing: Drawing, start: int, samples: int, advance: Callable[[], None]) -> np.ndarray:
        vocabulary, length, count = self._vocabulary, drawing.length, len(self._vocabulary.before)
        numbers = range(start, start + samples)
        uniform = np.stack([np.random.default_rng((drawing.seed, i)).random(length) for i in numbers])
        ids = np.zeros((samples, length), np.int64)
        ids[:, :count] = vocabulary.before
        starts = vocabulary.first[(uniform * len(vocabulary.first)).astype(np.int64)]
        ids[:, count] = starts[:, count]
        stream = TokenStream(self._model)
        for t in range(length):
            if t > count:
                drawn = draw_tokens(stream.logits(ids[:, :t]), uniform[:, t], drawing.temperature)
                ids[:, t] = np.where(np.isin(ids[:, t - 1], vocabulary.ends), starts[:, t], drawn)
            advance()
        return ids


def draw_tokens(logits: np.ndarray, uniform: np.ndarray, temperature: float) -> np.ndarray:
    """A token of each row, drawn from ``softmax(logits / temperature)``.

    Args:
        logits: float32 [rows, vocabulary].
        uniform: A random number of each row, from 0 to below 1: the token is the first one at which the cumulative
            probability exceeds it.
        temperature: Above 0.

    Returns:
        int64 [rows].

    Raises:
        JaxqError: a row has NaN, or no finite logit.

    Example:
        >>> draw_tokens(np.log(np.array([[0.1, 0.2, 0.7]], np.float32)), np.array([0.25]), 1.0)
        array([1])
    """
    greatest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(greatest).all():
        raise JaxqError("no text can be drawn from the model: its logits are NaN or infinite")
    cumulative = np.cumsum(np.exp((logits.astype(np.float64) - greatest) / temperature), axis=1)
    return np.argmax(cumulative > (uniform * cumulative[:, -1])[:, None], axis=1)


def _end_tokens(path: Path) -> list[int]:
    """End-of-text ids that a configuration names."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if isinstance(config, dict) and isinstance(config.get("model"), dict):  # of onnxruntime-genai
        config = config["model"]
    ids = config.get("eos_token_id") if isinstance(config, dict) else None
    return [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]
