"""Calibration and evaluation batches of a run, and that no sample is in both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path

import numpy as np

from jaxq.data.mixtures import mix
from jaxq.data.texts import embedded_samples
from jaxq.data.token_files import Arrays, read_npz, token_file_samples
from jaxq.embedded.text import Split
from jaxq.errors import JaxqError
from jaxq.harness.config import Config
from jaxq.harness.drawn_text import SEEDS, SELF, DrawnText, data_sources, draws_by_default
from jaxq.harness.text_sources import as_list, check_sources, datasets_of, shares_of, source_rows
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import TOKENS, InputSpec, to_batches


@dataclass(frozen=True)
class Origin:
    """Where the samples of a run come from.

    Attributes:
        sources: Each source with its number of samples; "none" without samples.
        drawn_share: Share of the samples that is drawn from the model itself.
    """

    sources: str = "none"
    drawn_share: float = 0.0


@dataclass(frozen=True, eq=False)
class RunData:
    """The data of a run.

    Attributes:
        calib: Calibration batches; empty where the configuration names no calibration data.
        held_out: Batches on which the accuracy is measured; empty without held-out data.
        notes: Sentences that a reader of the report should not miss.
        origins: Where ``calib`` ("calibration") and ``held_out`` ("evaluation") come from.
        drawing_seconds: About the seconds that drawing text would take, in a dry run; else 0.
    """

    calib: list[Batch]
    held_out: list[Batch]
    notes: tuple[str, ...]
    origins: Mapping[str, Origin]
    drawing_seconds: float = 0.0


def has_data(config: Config) -> bool:
    """True for a run with calibration data."""
    return config.calib.samples > 0 and bool(data_sources(config.calib) or config.model.name == "embedded")


def read_data(config: Config, source: Path, spec: InputSpec, drawn: DrawnText | None = None) -> RunData:
    """Reads, draws and checks the batches of a run.

    Args:
        config: The configuration.
        source: The model's file. Its ``tokenizer.json`` is the default tokenizer.
        spec: The inputs of the model.
        drawn: Gives samples drawn from the model; None where the run has none.

    Raises:
        JaxqError: data is missing, unreadable or does not fit the model, or all held-out samples are calibration
            samples.
    """
    calib, rows = _calibration(config, source, spec, drawn)
    held_out = _held_out(config, source, spec, rows)
    drawn_alone = config.eval.source == SELF or calib.origin.drawn_share == 1
    if drawn is not None and drawn_alone and config.eval.samples and not held_out.arrays:
        held_out = _drawn(drawn, "eval", config.eval.samples, config.eval.length)
    batches = [
        to_batches(part.arrays, spec, options.batch_size) if part.arrays else []
        for part, options in ((calib, config.calib), (held_out, config.eval))
    ]
    origins = {"calibration": calib.origin, "evaluation": held_out.origin}
    notes = tuple(_notes_on_overlap(*batches))
    return RunData(batches[0], batches[1], notes, origins, 0.0 if drawn is None else drawn.seconds)


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
        if len(sources := data_sources(data)) > 1:
            raise JaxqError(f"{' and '.join(f'{part}.{name}' for name in sources)} are given: give only one of them")
        if data.source not in (None, SELF):
            raise JaxqError(f"{part}.source is {data.source!r}: give self, or leave it out")
        if data.source == SELF and not data.samples:
            raise JaxqError(f"{part}.source is self, but {part}.samples is 0: give a number of samples")
        check_sources(part, data)
        details = [name for name in ("subset", "split", "column") if getattr(data, name)]
        if details and not data.dataset and (part == "calib" or not config.calib.dataset):
            raise JaxqError(f"{part}.{details[0]} is given without {part}.dataset: give the dataset too")
    _check_self_share(config)
    _check_holdout(config)
    _check_apart(config)


def _check_self_share(config: Config) -> None:
    """Checks ``calib.self_share`` against the other options."""
    share = config.calib.self_share
    if not 0 <= share <= 1:
        raise JaxqError(f"calib.self_share is {share}: give a number from 0 to 1, such as 0.5")
    if share and not config.calib.samples:
        raise JaxqError(f"calib.self_share is {share}, but calib.samples is 0: give a number of samples")
    if share and config.calib.source == SELF:
        raise JaxqError(f"calib.self_share is {share}, but calib.source=self draws all text: leave out one of them")
    if share and not data_sources(config.calib) and config.model.name != "embedded":
        raise JaxqError(
            f"calib.self_share is {share} without other data: give calib.text too, or calib.source=self for drawn text "
            "alone"
        )


def _check_holdout(config: Config) -> None:
    """Checks ``eval.holdout_fraction`` against the other options."""
    fraction = config.eval.holdout_fraction
    if not 0 <= fraction < 1:
        raise JaxqError(f"eval.holdout_fraction is {fraction}: give a number from 0 to below 1")
    if not fraction:
        return
    if data_sources(config.eval) or config.eval.split:
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
    for text in as_list(config.eval.text):
        held_out = Path(text).resolve()
        for other in as_list(config.calib.text):
            calib = Path(other).resolve()
            if calib == held_out or calib in held_out.parents or held_out in calib.parents:
                raise JaxqError(
                    f"eval.text {text!r} is also calibration text: give other text, or hold out a part of "
                    "calib.text with eval.holdout_fraction=0.2 instead"
                )
    if config.calib.dataset and (config.eval.dataset or config.eval.split):
        calibs, held_outs = datasets_of(config, config.calib, "train"), datasets_of(config, config.eval, "test")
        known = {(dataset.name, dataset.subset, dataset.split) for dataset in calibs}
        for dataset in held_outs:
            if (dataset.name, dataset.subset, dataset.split) in known:
                raise JaxqError(
                    f"{dataset.title} is also the calibration data: give another eval.split, or hold out a part of it "
                    "with eval.holdout_fraction=0.2 instead"
                )


@dataclass(frozen=True, eq=False)
class _Part:
    """Arrays of calibration or evaluation, and where they come from."""

    arrays: Arrays
    origin: Origin


def _part(named: Sequence[tuple[str, np.ndarray]]) -> _Part:
    """Token ids of several sources as one array."""
    texts = ", ".join(f"{name} ({_count(rows)})" for name, rows in named if len(rows))
    return _Part({TOKENS: np.concatenate([rows for _, rows in named])}, Origin(texts))


def _drawn(drawn: DrawnText, part: str, samples: int, length: int) -> _Part:
    """Samples drawn from the model."""
    rows = drawn.rows(part, samples, length)
    would_be = "would be " if drawn.dry_run else ""
    text = f"text {would_be}drawn from the model itself with seed {SEEDS[part]} ({_count(rows)})"
    return _Part({TOKENS: rows}, Origin(text, 1.0))


def _count(rows: np.ndarray) -> str:
    return f"{len(rows)} sample{'s' * (len(rows) != 1)}"


def _calibration(
    config: Config, source: Path, spec: InputSpec, drawn: DrawnText | None
) -> tuple[_Part, list[np.ndarray]]:
    """Calibration data, and the samples of each of its texts that are held out for the evaluation."""
    data = config.calib
    if data.samples == 0:
        return _Part({}, Origin()), []
    if drawn is not None and (data.source == SELF or draws_by_default(config)):
        return _drawn(drawn, "calib", data.samples, data.length), []
    drawn_samples = max(1, round(data.self_share * data.samples)) if drawn is not None and data.self_share else 0
    real, rows = _real_calibration(config, source, spec, data.samples - drawn_samples)
    if drawn is None or not drawn_samples:
        return real, rows
    if list(real.arrays) != [TOKENS] or real.arrays[TOKENS].ndim != 2:
        raise JaxqError(
            f"calib.self_share is {data.self_share}, and calib.tokens has {', '.join(real.arrays)}: give token ids "
            "alone, without padding"
        )
    ids = real.arrays[TOKENS]
    more = _drawn(drawn, "calib", drawn_samples, ids.shape[1])
    texts = [part.origin.sources for part in ((real, more) if len(ids) else (more,))]
    share = drawn_samples / (drawn_samples + len(ids))
    return _Part({TOKENS: np.concatenate([ids, more.arrays[TOKENS]])}, Origin(", ".join(texts), share)), rows


def _real_calibration(config: Config, source: Path, spec: InputSpec, samples: int) -> tuple[_Part, list[np.ndarray]]:
    """As `_calibration`, without drawn text."""
    data = config.calib
    if data.tokens:
        arrays = token_file_samples(Path(data.tokens), "calib", samples, spec)
        return _Part(arrays, _file_origin(data.tokens, arrays)), []
    if data.text or data.dataset:
        fraction = config.eval.holdout_fraction if config.eval.samples else 0.0
        named = source_rows(config, "calib", source, samples + (config.eval.samples if fraction else 0))
        used, held_out = [], []
        for name, rows in named:
            count = len(rows) - ceil(fraction * len(rows))
            if not count:
                raise JaxqError(
                    f"eval.holdout_fraction is {fraction} and {name} has {_count(rows)}, which leaves none for "
                    "calibration: give more text"
                )
            used.append(rows[:count])
            held_out.append(rows[count:])
        mixed = mix(used, shares_of(data), samples)
        return _part([(name, rows) for (name, _), rows in zip(named, mixed, strict=True)]), held_out
    if config.model.name == "embedded":
        return _builtin("calib", samples, data.length), []
    return _Part({}, Origin()), []


def _held_out(config: Config, source: Path, spec: InputSpec, held_out: Sequence[np.ndarray]) -> _Part:
    """Evaluation data: that which ``eval`` names, else the held-out samples, else that of the calibration's file."""
    data = config.eval
    if data.samples == 0 or data.source == SELF:
        return _Part({}, Origin())
    if data.tokens:
        arrays = token_file_samples(Path(data.tokens), "eval", data.samples, spec)
        return _Part(arrays, _file_origin(data.tokens, arrays))
    if data.text or data.dataset or (data.split and config.calib.dataset):
        named = source_rows(config, "eval", source, data.samples)
        shares = shares_of(data if data.text or data.dataset else config.calib)
        mixed = mix([rows for _, rows in named], shares, data.samples)
        return _part([(name, rows) for (name, _), rows in zip(named, mixed, strict=True)])
    if any(len(rows) for rows in held_out):
        mixed = mix(held_out, shares_of(config.calib), data.samples)
        return _part([("held-out part of the calibration text", np.concatenate(mixed))])
    if config.calib.tokens and "eval" in read_npz(Path(config.calib.tokens)):
        arrays = token_file_samples(Path(config.calib.tokens), "eval", data.samples, spec)
        return _Part(arrays, _file_origin(config.calib.tokens, arrays))
    if config.model.name == "embedded":
        return _builtin("eval", data.samples, data.length)
    return _Part({}, Origin())


def _file_origin(path: str, arrays: Arrays) -> Origin:
    return Origin(f"file {path!r} ({_count(next(iter(arrays.values())))})")


def _builtin(split: Split, samples: int, length: int) -> _Part:
    """Samples of the embedded model's text."""
    return _part([("Python's documentation", embedded_samples(split, samples, length)[TOKENS])])


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
