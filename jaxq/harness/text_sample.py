"""A sample of greedily generated text of the float and the quantized model, for the report of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxq.data.texts import load_tokenizer
from jaxq.evaluation.judge import Sample, continue_text
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import TOKENS
from jaxq.runtime.language_model import LARGE, file_size, open_language_model

PROMPT_TOKENS = 32
"""Tokens of the held-out data that models continue."""


@dataclass(frozen=True)
class TextSample:
    """The same prompt, continued by both models: each time the most likely token.

    Attributes:
        prompt: The beginning of the held-out data.
        float_text, quantized_text: The continuations.
    """

    prompt: str
    float_text: str
    quantized_text: str


def sample_texts(source: Path, target: Path, tokenizer: Path | None, held_out: Sequence[Batch]) -> TextSample | None:
    """Continuations by both models; None where there is no tokenizer, no held-out text, or no language model.

    Float models above 2 GiB are left out, since their decoding would take minutes.

    Args:
        source: The float model's file.
        target: The quantized model's file, which onnxruntime has to run on a CPU.
        tokenizer: The tokenizer's file.
        held_out: Held-out data; its first sample begins with the prompt.

    Raises:
        JaxqError: a file cannot be read or run.
    """
    if tokenizer is None or not held_out or TOKENS not in held_out[0].feeds or file_size(source) > LARGE:
        return None
    prompt = _first_tokens(held_out[0])
    encoder = load_tokenizer(tokenizer)

    def decode(tokens: Sequence[int]) -> str:
        return encoder.decode(list(tokens), skip_special_tokens=False)

    texts = []
    for path in (source, target):
        model = open_language_model(path)
        if isinstance(model, str) or int(prompt.max()) >= model.vocabulary:
            return None
        texts.append(continue_text(model, Sample(prompt, decode)))
    return TextSample(decode(prompt[0].tolist()), *texts)


def escaped(text: str) -> str:
    r"""A text on one line: line breaks and control characters are escaped.

    Example:
        >>> print(escaped("a\nb"))
        a\nb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _first_tokens(batch: Batch) -> np.ndarray:
    """Token ids [1, tokens]: the first real ones of a batch's first sample."""
    row = np.asarray(batch.feeds[TOKENS][0], np.int64)
    real = row if batch.keep is None else row[np.asarray(batch.keep[0]) > 0]
    return real[None, :PROMPT_TOKENS]
