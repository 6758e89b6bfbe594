"""Figures of any ONNX models side by side: accuracy on held-out data, size, speed, and a sample of text."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jaxq.errors import JaxqError
from jaxq.evaluation.accuracy import compare
from jaxq.evaluation.outputs import JudgedOutput, compare_outputs
from jaxq.evaluation.speed import Speed, measure_speeds
from jaxq.progress import Progress, silent
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import TOKENS
from jaxq.runtime.language_model import LanguageModel, TokenStream, file_size, open_language_model
from jaxq.runtime.session import run, session, to_jax

if TYPE_CHECKING:
    from jaxq.runtime.session import Session

_SETTING = "as given"


@dataclass(frozen=True)
class Judged:
    """Figures of one model. None stands for a figure that was not measured.

    Attributes:
        model: The model, as it was named.
        nbytes: Bytes of its file and its external data.
        tokens: Number of predicted tokens.
        perplexity, perplexity_error: ``exp`` of the mean negative log-likelihood of the next token, and its standard
            error over samples.
        kl, kl_error: Mean Kullback-Leibler divergence from the float model's next-token distribution in nats, and its
            standard error over samples.
        top1: Share of positions where the most likely token of both models is the same.
        outputs: Distances of the outputs of a model that is no language model; see `jaxq.evaluation.outputs`.
        speed: Tokens per second.
        text: Greedy continuation of the prompt.
    """

    model: str
    nbytes: int
    tokens: int | None = None
    perplexity: float | None = None
    perplexity_error: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    top1: float | None = None
    outputs: tuple[JudgedOutput, ...] = ()
    speed: Speed | None = None
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to judge.

    Attributes:
        name: As the user named it.
        path: Its ONNX file.
        batches: The held-out data as inputs of this model, one sample each; the same samples for every model.
    """

    name: str
    path: Path
    batches: Sequence[Batch]


@dataclass(frozen=True, eq=False)
class Sample:
    """The beginning of a text that language models continue.

    Attributes:
        ids: Token ids [1, tokens].
        decode: Text of token ids.
        count: Number of tokens to add.
    """

    ids: np.ndarray
    decode: Callable[[Sequence[int]], str]
    count: int = 40


def judge(
    subjects: Sequence[Subject],
    reference: Subject | None = None,
    sample: Sample | None = None,
    speed: bool = True,
    progress: Progress = silent,
) -> list[Judged]:
    """Figures of models, each run by onnxruntime on the CPU as its file is.

    All models are in memory at a time. Their speeds are measured in turns, after the accuracy.

    Args:
        subjects: The models.
        reference: The float model for KL divergence, agreement and distances; it may be one of ``subjects``.
        sample: A text to continue.
        speed: Measure the speed of language models.
        progress: Called at the beginning and after each sample.

    Raises:
        JaxqError: onnxruntime cannot run a model, the models are of different kinds, or a model that is no language
            model has no reference.
    """
    opened = {subject.path: _open(subject) for subject in [*subjects, *([reference] if reference else [])]}
    languages = {path: model for path, model in opened.items() if isinstance(model, LanguageModel)}
    judged = [Judged(subject.name, file_size(subject.path)) for subject in subjects]
    if len(languages) not in (0, len(opened)):
        other = next(s.name for s in [*subjects, *([reference] if reference else [])] if s.path not in languages)
        raise JaxqError(f"model {other!r} is no language model, and others are: evaluate one kind at a time")
    if not languages:
        if sample is not None:
            raise JaxqError(
                f"model {subjects[0].name!r} is no language model, and continues no text: leave out --prompt"
            )
        return _judge_outputs(judged, subjects, reference, opened, progress)
    judged = _judge_languages(judged, subjects, reference, languages, progress)
    if speed:
        models = [languages[subject.path] for subject in subjects]
        judged = [replace(j, speed=s) for j, s in zip(judged, measure_speeds(models, progress), strict=True)]
    if sample is not None:
        texts = (continue_text(languages[subject.path], sample) for subject in subjects)
        judged = [replace(j, text=text) for j, text in zip(judged, texts, strict=True)]
    return judged


def continue_text(model: LanguageModel, sample: Sample) -> str:
    """The greedy continuation of a text: the most likely token, again and again.

    Raises:
        JaxqError: the model lacks a token of the text.
    """
    if int(sample.ids.max()) >= model.vocabulary:
        raise JaxqError(
            f"the tokenizer gives the token {int(sample.ids.max())}, and the model knows 0 to {model.vocabulary - 1}: "
            "give the tokenizer of this model"
        )
    stream, ids = TokenStream(model), sample.ids
    for _ in range(sample.count):
        ids = np.concatenate([ids, stream.logits(ids).argmax(axis=1)[:, None]], axis=1)
    return sample.decode(ids[0, sample.ids.shape[1] :].tolist())


def _open(subject: Subject) -> "LanguageModel | Session":
    model = open_language_model(subject.path)
    return session(subject.path) if isinstance(model, str) else model


def _judge_languages(
    judged: Sequence[Judged],
    subjects: Sequence[Subject],
    reference: Subject | None,
    models: Mapping[Path, LanguageModel],
    progress: Progress,
) -> list[Judged]:
    """Perplexity, KL divergence and agreement of language models."""
    count = len(subjects[0].batches)
    if not count:
        return list(judged)
    advance = progress("evaluate", count)
    sums = np.zeros((len(subjects), count, 4))
    tokens = np.zeros(count)
    for i in range(count):
        tokens[i] = _real_pairs(subjects[0].batches[i])
        expected = None if reference is None else _logits(models[reference.path], reference.batches[i])
        for j, subject in enumerate(subjects):
            batch = subject.batches[i]
            logits = _logits(models[subject.path], batch)
            ids = jnp.asarray(batch.feeds[TOKENS], jnp.int32)
            against = logits if expected is None else expected
            if against.shape[-1] != logits.shape[-1]:
                raise JaxqError(
                    f"model {subject.name!r} has {logits.shape[-1]} logits and the float model {against.shape[-1]}: "
                    "they must have the same vocabulary"
                )
            sums[j, i] = np.asarray(compare(against, logits, ids, _keep(batch)), np.float64)
        advance()
    if not tokens.sum():
        raise JaxqError("the held-out text has no two real tokens in a row: give longer samples")
    return [
        _with_accuracy(row, totals, tokens, reference is not None) for row, totals in zip(judged, sums, strict=True)
    ]


def _with_accuracy(judged: Judged, sums: np.ndarray, tokens: np.ndarray, against: bool) -> Judged:
    """The figures of a model from its sums [samples, 4] of `jaxq.evaluation.accuracy.compare`."""
    nll, nll_error = mean_and_error(sums[:, 1], tokens)
    perplexity = math.exp(nll)
    judged = replace(
        judged, tokens=int(tokens.sum()), perplexity=perplexity, perplexity_error=_times(perplexity, nll_error)
    )
    if not against:
        return judged
    kl, kl_error = mean_and_error(sums[:, 2], tokens)
    return replace(judged, kl=kl, kl_error=kl_error, top1=float(sums[:, 3].sum() / tokens.sum()))


def mean_and_error(totals: np.ndarray, tokens: np.ndarray) -> tuple[float, float | None]:
    """The mean over tokens, and its standard error with samples as independent units.

    The error is that of a ratio of sums, ``sqrt(n / (n - 1) sum (total_i - mean tokens_i)^2) / sum tokens_i``.

    Args:
        totals: Sum over the tokens of each sample.
        tokens: Number of tokens of each sample.

    Returns:
        The mean, and the error; None for fewer than two samples.

    Example:
        >>> mean_and_error(np.array([2.0, 4.0]), np.array([2.0, 2.0]))
        (1.5, 0.5)
    """
    mean = float(totals.sum() / tokens.sum())
    count = int(np.count_nonzero(tokens))
    if count < 2:
        return mean, None
    spread = float(np.sum(np.square(totals - mean * tokens)))
    return mean, math.sqrt(count / (count - 1) * spread) / float(tokens.sum())


def _times(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error


def _logits(model: LanguageModel, batch: Batch) -> jnp.ndarray:
    logits = to_jax(run(model.session, [model.output], batch.feeds)[model.output])
    if (greatest := int(batch.feeds[TOKENS].max())) >= logits.shape[-1]:
        raise JaxqError(f"the data has the token {greatest}, and the model has {logits.shape[-1]} logits")
    return logits


def _keep(batch: Batch) -> jnp.ndarray:
    shape = batch.feeds[TOKENS].shape
    return jnp.ones(shape, jnp.float32) if batch.keep is None else jnp.asarray(batch.keep, jnp.float32)


def _real_pairs(batch: Batch) -> int:
    keep = np.ones(batch.feeds[TOKENS].shape) if batch.keep is None else np.asarray(batch.keep)
    return int(np.sum(keep[:, 1:] * keep[:, :-1]))


def _judge_outputs(
    judged: Sequence[Judged],
    subjects: Sequence[Subject],
    reference: Subject | None,
    sessions: "Mapping[Path, LanguageModel | Session]",
    progress: Progress,
) -> list[Judged]:
    """Cosine and relative error of the outputs of models that are no language models."""
    if not subjects[0].batches:
        return list(judged)
    if reference is None:
        raise JaxqError(
            f"model {subjects[0].name!r} is no language model, and has no accuracy of its own: give the float model "
            "with --against"
        )
    rows = []
    for row, subject in zip(judged, subjects, strict=True):
        if {*subject.batches[0].feeds} != {*reference.batches[0].feeds}:
            raise JaxqError(
                f"models {subject.name!r} and {reference.name!r} have different inputs: they cannot be compared"
            )
        advance = progress("evaluate", len(subject.batches))
        pair = {_SETTING: sessions[subject.path]}
        comparison = compare_outputs(sessions[reference.path], pair, reference.batches, advance)  # type: ignore[arg-type]
        if isinstance(comparison, str):
            raise JaxqError(f"model {subject.name!r} cannot be compared: {comparison}")
        rows.append(replace(row, outputs=comparison.outputs))
    return rows
