"""Calibration and evaluation batches of a run, and that no sample is in both."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path

import numpy as np

from jaxq import embedded
from jaxq.data.text_datasets import TextDataset, dataset_text
from jaxq.data.texts import embedded_samples, load_tokenizer, read_text, spread, token_rows
from jaxq.data.token_files import Arrays, read_npz, token_file_samples
from jaxq.errors import JaxqError
from jaxq.harness.config import Config, DataConfig
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import TOKENS, InputSpec, to_batches


@dataclass(frozen=True, eq=False)
class RunData:
    """What a run reads.

    Attributes:
        calib: Calibration batches; none where the configuration names none.
        held_out: Batches that accuracy is judged on.
        notes: Sentences that a reader should not miss.
    """

    calib: list[Batch]
    held_out: list[Batch]
    notes: tuple[str, ...]


def has_data(config: Config) -> bool:
    """Whether a run is given calibration data."""
    return config.calib.samples > 0 and bool(_named(config.calib) or config.model.name == "embedded")


def read_data(config: Config, source: Path, spec: InputSpec) -> RunData:
    """The batches of a run, checked.

    Args:
        config: Its configuration.
        source: The model's file; a ``tokenizer.json`` beside it is taken where no tokenizer is given.
        spec: What the model wants.

    Raises:
        JaxqError: data is missing, unreadable, or does not fit the model; or the evaluation is on calibration data.
    """
    calib, rest = _calibration(config, source, spec)
    held_out = _held_out(config, source, spec, rest)
    batches = [
        to_batches(arrays, spec, part.batch_size) if arrays else []
        for arrays, part in ((calib, config.calib), (held_out, config.eval))
    ]
    return RunData(batches[0], batches[1], tuple(_shared(*batches)))


def check_data(config: Config) -> None:
    """Refuses what cannot be read, or would judge a model on its calibration data, before any work.

    Raises:
        JaxqError: options contradict each other or are out of range.
    """
    for part, data in (("calib", config.calib), ("eval", config.eval)):
        if data.samples < 0 or data.length < 2:
            raise JaxqError(
                f"{part}.samples is {data.samples} and {part}.length {data.length}: at least 0 and 2 are needed"
            )
        if len(named := _named(data)) > 1:
            raise JaxqError(f"{' and '.join(f'{part}.{name}' for name in named)} are given: give one of them")
        loose = [name for name in ("subset", "split", "column") if getattr(data, name)]
        if loose and not data.dataset and (part == "calib" or not config.calib.dataset):
            raise JaxqError(f"{part}.{loose[0]} is given without {part}.dataset: say which dataset")
    if not 0 <= config.eval.share < 1:
        raise JaxqError(f"eval.share is {config.eval.share}: give a number from 0 to below 1")
    if config.eval.share and (_named(config.eval) or config.eval.split):
        raise JaxqError("eval.share keeps a part of the calibration text: leave it out where eval names other data")
    if config.eval.share and not (config.calib.text or config.calib.dataset):
        raise JaxqError("eval.share keeps a part of calib.text or calib.dataset: give one of them")
    if config.eval.share and not config.calib.samples:
        raise JaxqError("eval.share keeps a part of the calibration text, and calib.samples is 0: give eval.text")
    if config.eval.share and config.eval.length != config.calib.length:
        raise JaxqError(
            f"eval.share keeps whole samples, but eval.length is {config.eval.length} and calib.length "
            f"{config.calib.length}: give them the same length"
        )
    _check_apart(config)


def _check_apart(config: Config) -> None:
    """Refuses text for evaluation that is calibration text; no number would mean anything."""
    if not config.calib.samples or not config.eval.samples:
        return
    if config.calib.text and config.eval.text:
        calib, held_out = Path(config.calib.text).resolve(), Path(config.eval.text).resolve()
        if calib == held_out or calib in held_out.parents or held_out in calib.parents:
            raise JaxqError(
                f"eval.text {config.eval.text!r} is also calibration text: give other text, or eval.share=0.2 in its "
                "place to keep a part of calib.text apart"
            )
    if config.calib.dataset:
        calib, held_out = _dataset(config, config.calib, "train"), _dataset(config, config.eval, "test")
        if (config.eval.dataset or config.eval.split) and (calib.name, calib.subset, calib.split) == (
            held_out.name,
            held_out.subset,
            held_out.split,
        ):
            raise JaxqError(
                f"{held_out.title} is also the calibration data: give another eval.split, or eval.share=0.2 in its "
                "place to keep a part of it apart"
            )


def _named(data: DataConfig) -> list[str]:
    return [name for name in ("tokens", "text", "dataset") if getattr(data, name)]


def _calibration(config: Config, source: Path, spec: InputSpec) -> tuple[Arrays, np.ndarray | None]:
    """Calibration arrays, and the rows of its text that are kept for the evaluation."""
    data = config.calib
    if data.samples == 0:
        return {}, None
    if data.tokens:
        return token_file_samples(Path(data.tokens), "calib", data.samples, spec), None
    if data.text or data.dataset:
        share = config.eval.share if config.eval.samples else 0.0
        rows = _rows(config, "calib", source, data.samples + (config.eval.samples if share else 0))
        kept = ceil(share * len(rows))
        if kept >= len(rows):
            raise JaxqError(f"eval.share is {share} and the calibration text has {len(rows)} samples: give more text")
        return {TOKENS: spread(rows[: len(rows) - kept], data.samples)}, rows[len(rows) - kept :]
    if config.model.name == "embedded":
        return embedded_samples("calib", data.samples, data.length), None
    return {}, None


def _held_out(config: Config, source: Path, spec: InputSpec, rest: np.ndarray | None) -> Arrays:
    data = config.eval
    if data.samples == 0:
        return {}
    if data.tokens:
        return token_file_samples(Path(data.tokens), "eval", data.samples, spec)
    if data.text or data.dataset or (data.split and config.calib.dataset):
        return {TOKENS: spread(_rows(config, "eval", source, data.samples), data.samples)}
    if rest is not None and len(rest):
        return {TOKENS: spread(rest, data.samples)}
    if config.calib.tokens and "eval" in read_npz(Path(config.calib.tokens)):
        return token_file_samples(Path(config.calib.tokens), "eval", data.samples, spec)
    if config.model.name == "embedded":
        return embedded_samples("eval", data.samples, data.length)
    return {}


def _rows(config: Config, part: str, source: Path, samples: int) -> np.ndarray:
    """All samples of a text, or those of a dataset's first rows, [samples, length]."""
    data = config.calib if part == "calib" else config.eval
    given = data.tokenizer or config.calib.tokenizer
    beside = Path(embedded.__file__).parent if config.model.name == "embedded" else source.parent
    above = Path(os.path.abspath(beside))  # "." has no name
    if above.name == "onnx" and not (beside / "tokenizer.json").is_file():  # a repository's folder of exports
        beside = above.parent
    tokenizer = Path(given) if given else beside / "tokenizer.json"
    if not given and not tokenizer.is_file():
        what = "text" if data.text else "dataset"
        raise JaxqError(
            f"{part}.{what} is given without a tokenizer, and {str(beside)!r} holds no tokenizer.json: "
            f"give {part}.tokenizer=<tokenizer.json>"
        )
    encoder = load_tokenizer(tokenizer)
    if data.text:
        return token_rows(read_text(Path(data.text)), encoder, data.length, f"text {data.text!r}")
    found = _dataset(config, data, "train" if part == "calib" else "test")
    return token_rows(dataset_text(found, samples * data.length), encoder, data.length, found.title)


def _dataset(config: Config, data: DataConfig, split: str) -> TextDataset:
    """Where the evaluation names no dataset, subset or column, it is the calibration's."""
    own = bool(data.dataset)
    calib = config.calib
    return TextDataset(
        name=str(data.dataset or calib.dataset),
        split=data.split or split,
        subset=data.subset if own else data.subset or calib.subset,
        column=data.column if own else data.column or calib.column,
    )


def _shared(calib: Sequence[Batch], held_out: Sequence[Batch]) -> Iterator[str]:
    """A note on samples that are in both; refused where all of the evaluation's are."""
    known = set(_fingerprints(calib))
    found = [print_ in known for print_ in _fingerprints(held_out)]
    if found and all(found):
        raise JaxqError("all evaluation samples are calibration samples: give other data, or eval.samples=0")
    if any(found):
        yield f"{sum(found)} of {len(found)} evaluation samples are calibration samples too: accuracy looks too good"


def _fingerprints(batches: Sequence[Batch]) -> Iterator[bytes]:
    for batch in batches:
        names = [TOKENS] if TOKENS in batch.feeds else sorted(batch.feeds)
        for sample in zip(*(batch.feeds[name] for name in names), strict=True):
            yield sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in sample)).digest()
