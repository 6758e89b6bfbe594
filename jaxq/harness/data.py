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
    """The data of a run.

    Attributes:
        calib: Calibration batches; empty where the configuration names no calibration data.
        held_out: Batches on which the accuracy is measured; empty without held-out data.
        notes: Sentences that a reader of the report should not miss.
    """

    calib: list[Batch]
    held_out: list[Batch]
    notes: tuple[str, ...]


def has_data(config: Config) -> bool:
    """True for a run with calibration data."""
    return config.calib.samples > 0 and bool(_sources(config.calib) or config.model.name == "embedded")


def read_data(config: Config, source: Path, spec: InputSpec) -> RunData:
    """Reads and checks the batches of a run.

    Args:
        config: The configuration.
        source: The model's file. Its ``tokenizer.json`` is the default tokenizer.
        spec: The inputs of the model.

    Raises:
        JaxqError: data is missing, unreadable or does not fit the model, or all held-out samples are calibration
            samples.
    """
    calib, rows = _calibration(config, source, spec)
    held_out = _held_out(config, source, spec, rows)
    batches = [
        to_batches(arrays, spec, part.batch_size) if arrays else []
        for arrays, part in ((calib, config.calib), (held_out, config.eval))
    ]
    return RunData(batches[0], batches[1], tuple(_notes_on_overlap(*batches)))


def check_data(config: Config) -> None:
    """Checks the options on data before any work, and that the evaluation does not use calibration data.

    Raises:
        JaxqError: options contradict each other or are out of range.
    """
    for part, data in (("calib", config.calib), ("eval", config.eval)):
        if data.samples < 0 or data.length < 2:
            raise JaxqError(
                f"{part}.samples is {data.samples} and {part}.length is {data.length}: give at least 0 and 2"
            )
        if len(sources := _sources(data)) > 1:
            raise JaxqError(f"{' and '.join(f'{part}.{name}' for name in sources)} are given: give only one of them")
        details = [name for name in ("subset", "split", "column") if getattr(data, name)]
        if details and not data.dataset and (part == "calib" or not config.calib.dataset):
            raise JaxqError(f"{part}.{details[0]} is given without {part}.dataset: give the dataset too")
    _check_holdout(config)
    _check_apart(config)


def _check_holdout(config: Config) -> None:
    """Checks ``eval.holdout_fraction`` against the other options."""
    fraction = config.eval.holdout_fraction
    if not 0 <= fraction < 1:
        raise JaxqError(f"eval.holdout_fraction is {fraction}: give a number from 0 to below 1")
    if not fraction:
        return
    if _sources(config.eval) or config.eval.split:
        raise JaxqError(
            f"eval.holdout_fraction is {fraction}, and eval names other data: leave out one of them, since a held-out "
            "fraction is part of the calibration text"
        )
    if not (config.calib.text or config.calib.dataset):
        raise JaxqError(f"eval.holdout_fraction is {fraction} without text: give calib.text or calib.dataset")
    if not config.calib.samples:
        raise JaxqError(f"eval.holdout_fraction is {fraction}, but calib.samples is 0: give eval.text instead")
    if config.eval.length != config.calib.length:
        raise JaxqError(
            f"eval.holdout_fraction holds out whole samples, but eval.length is {config.eval.length} and calib.length "
            f"is "
            f"{config.calib.length}: give both the same length"
        )


def _check_apart(config: Config) -> None:
    """Refuses an evaluation on calibration text: its figures would mean nothing."""
    if not config.calib.samples or not config.eval.samples:
        return
    if config.calib.text and config.eval.text:
        calib, held_out = Path(config.calib.text).resolve(), Path(config.eval.text).resolve()
        if calib == held_out or calib in held_out.parents or held_out in calib.parents:
            raise JaxqError(
                f"eval.text {config.eval.text!r} is also calibration text: give other text, or hold out a part of "
                "calib.text with eval.holdout_fraction=0.2 instead"
            )
    if config.calib.dataset and (config.eval.dataset or config.eval.split):
        calib, held_out = _dataset(config, config.calib, "train"), _dataset(config, config.eval, "test")
        if (calib.name, calib.subset, calib.split) == (held_out.name, held_out.subset, held_out.split):
            raise JaxqError(
                f"{held_out.title} is also the calibration data: give another eval.split, or hold out a part of it "
                f"with "
                "eval.holdout_fraction=0.2 instead"
            )


def _sources(data: DataConfig) -> list[str]:
    """Names of the options that say where data comes from, if given."""
    return [name for name in ("tokens", "text", "dataset") if getattr(data, name)]


def _calibration(config: Config, source: Path, spec: InputSpec) -> tuple[Arrays, np.ndarray | None]:
    """Calibration arrays, and the samples of the same text that are held out for the evaluation."""
    data = config.calib
    if data.samples == 0:
        return {}, None
    if data.tokens:
        return token_file_samples(Path(data.tokens), "calib", data.samples, spec), None
    if data.text or data.dataset:
        fraction = config.eval.holdout_fraction if config.eval.samples else 0.0
        rows = _rows(config, "calib", source, data.samples + (config.eval.samples if fraction else 0))
        held_out = ceil(fraction * len(rows))
        if held_out >= len(rows):
            raise JaxqError(
                f"eval.holdout_fraction is {fraction} and the calibration text has {len(rows)} samples, which leaves "
                "none for calibration: give more text"
            )
        return {TOKENS: spread(rows[: len(rows) - held_out], data.samples)}, rows[len(rows) - held_out :]
    if config.model.name == "embedded":
        return embedded_samples("calib", data.samples, data.length), None
    return {}, None


def _held_out(config: Config, source: Path, spec: InputSpec, held_out: np.ndarray | None) -> Arrays:
    """Evaluation arrays: of data that ``eval`` names, else of the held-out samples, else of the calibration's file."""
    data = config.eval
    if data.samples == 0:
        return {}
    if data.tokens:
        return token_file_samples(Path(data.tokens), "eval", data.samples, spec)
    if data.text or data.dataset or (data.split and config.calib.dataset):
        return {TOKENS: spread(_rows(config, "eval", source, data.samples), data.samples)}
    if held_out is not None and len(held_out):
        return {TOKENS: spread(held_out, data.samples)}
    if config.calib.tokens and "eval" in read_npz(Path(config.calib.tokens)):
        return token_file_samples(Path(config.calib.tokens), "eval", data.samples, spec)
    if config.model.name == "embedded":
        return embedded_samples("eval", data.samples, data.length)
    return {}


def _rows(config: Config, part: str, source: Path, samples: int) -> np.ndarray:
    """Token ids [samples, length] of all of a text, or of the first rows of a dataset."""
    data = config.calib if part == "calib" else config.eval
    encoder = load_tokenizer(_tokenizer_path(config, part, source))
    if data.text:
        return token_rows(read_text(Path(data.text)), encoder, data.length, f"text {data.text!r}")
    dataset = _dataset(config, data, "train" if part == "calib" else "test")
    return token_rows(dataset_text(dataset, samples * data.length), encoder, data.length, dataset.title)


def _tokenizer_path(config: Config, part: str, source: Path) -> Path:
    """The tokenizer that is given, else the one beside the model."""
    data = config.calib if part == "calib" else config.eval
    if given := data.tokenizer or config.calib.tokenizer:
        return Path(given)
    folder = Path(embedded.__file__).parent if config.model.name == "embedded" else source.parent
    absolute = Path(os.path.abspath(folder))  # "." has no name
    if absolute.name == "onnx" and not (folder / "tokenizer.json").is_file():  # a repository's folder of exports
        folder = absolute.parent
    if not (folder / "tokenizer.json").is_file():
        kind = "text" if data.text else "dataset"
        raise JaxqError(
            f"{part}.{kind} is given without a tokenizer, and there is no tokenizer.json in {str(folder)!r}: "
            f"give {part}.tokenizer=<tokenizer.json>"
        )
    return folder / "tokenizer.json"


def _dataset(config: Config, data: DataConfig, default_split: str) -> TextDataset:
    """The dataset that the options name; the evaluation uses the calibration's where it names none."""
    calib = config.calib
    named = bool(data.dataset)
    return TextDataset(
        name=str(data.dataset or calib.dataset),
        split=data.split or default_split,
        subset=data.subset if named else data.subset or calib.subset,
        column=data.column if named else data.column or calib.column,
    )


def _notes_on_overlap(calib: Sequence[Batch], held_out: Sequence[Batch]) -> Iterator[str]:
    """A note where some held-out samples are calibration samples too.

    Raises:
        JaxqError: all of them are.
    """
    known = set(_fingerprints(calib))
    overlaps = [fingerprint in known for fingerprint in _fingerprints(held_out)]
    if overlaps and all(overlaps):
        raise JaxqError("all evaluation samples are calibration samples: give other data, or eval.samples=0")
    if any(overlaps):
        count, total = sum(overlaps), len(overlaps)
        yield f"{count} of {total} evaluation samples are calibration samples too: the accuracy looks too good"


def _fingerprints(batches: Sequence[Batch]) -> Iterator[bytes]:
    """SHA-256 of each sample's token ids, or of all its inputs where the model takes no token ids."""
    for batch in batches:
        names = [TOKENS] if TOKENS in batch.feeds else sorted(batch.feeds)
        for sample in zip(*(batch.feeds[name] for name in names), strict=True):
            yield sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in sample)).digest()
