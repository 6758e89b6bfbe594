"""Texts and datasets that a run names: one or several, mixed by share."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxq.data.text_datasets import TextDataset, dataset_text
from jaxq.data.texts import load_tokenizer, read_text, token_rows
from jaxq.errors import JaxqError
from jaxq.harness.config import Config, DataConfig
from jaxq.harness.tokenizer_files import find_tokenizer, tokenizer_folder


def as_list(value: object) -> list[str]:
    """One path, name, or several, as a list; empty for None.

    Example:
        >>> as_list("a"), as_list(["a", "b"]), as_list(None)
        (['a'], ['a', 'b'], [])
    """
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ["" if item is None else str(item) for item in value]
    return [str(value)]


def check_sources(part: str, data: DataConfig) -> None:
    """Checks lists of texts and datasets, and their shares.

    Raises:
        JaxqError: a list is empty or has another thing than a path or a name, or the shares do not fit it.
    """
    for name in ("text", "dataset"):
        value: object = getattr(data, name)
        if value is not None and (isinstance(value, Mapping) or not value or not all(as_list(value))):
            raise JaxqError(f"{part}.{name} is {_shown(value)}: give a path, or a list of paths such as [a/,b/]")
    if data.shares is None:
        return
    shares, count = [float(share) for share in data.shares], len(as_list(data.text) or as_list(data.dataset))
    if count < 2:
        raise JaxqError(
            f"{part}.shares is {_shown(shares)}, and {'one text is' if count else 'no texts are'} given: give several, "
            f"as in {part}.text=[a/,b/], or leave out {part}.shares"
        )
    if len(shares) != count:
        raise JaxqError(
            f"{part}.shares is {_shown(shares)} for {count} texts: give one number for each, such as "
            f"{_shown([3.0] + [1.0] * (count - 1))}"
        )
    if not all(math.isfinite(share) and share > 0 for share in shares):
        raise JaxqError(f"{part}.shares is {_shown(shares)}: give positive numbers, such as [3,1]")


def shares_of(data: DataConfig) -> list[float]:
    """The share of each text or dataset."""
    count = len(as_list(data.text) or as_list(data.dataset))
    return [1.0] * count if data.shares is None else [float(share) for share in data.shares]


def source_rows(config: Config, part: str, source: Path, samples: int) -> list[tuple[str, np.ndarray]]:
    """Name and token ids [samples, length] of each text, whole, or of each dataset's first rows.

    Args:
        config: The configuration.
        part: "calib" or "eval".
        source: The model's file.
        samples: Number of samples that a dataset has to give at least.

    Raises:
        JaxqError: a text or a dataset cannot be read or is shorter than a sample, or there is no tokenizer.
    """
    data = config.calib if part == "calib" else config.eval
    tokenizer = find_tokenizer(config, part, source)
    if tokenizer is None:
        kind = "text" if data.text else "dataset"
        raise JaxqError(
            f"{part}.{kind} is given without a tokenizer, and there is no tokenizer.json in "
            f"{str(tokenizer_folder(config, source))!r}: give {part}.tokenizer=<tokenizer.json>"
        )
    encoder = load_tokenizer(tokenizer)
    if data.text:
        names = [(path, f"text {path!r}") for path in as_list(data.text)]
        return [(name, token_rows(read_text(Path(path)), encoder, data.length, name)) for path, name in names]
    datasets = datasets_of(config, data, "train" if part == "calib" else "test")
    return [
        (dataset.title, token_rows(dataset_text(dataset, samples * data.length), encoder, data.length, dataset.title))
        for dataset in datasets
    ]


def datasets_of(config: Config, data: DataConfig, default_split: str) -> list[TextDataset]:
    """The datasets that the options name; the evaluation uses the calibration's where it names none."""
    calib = config.calib
    named = bool(data.dataset)
    return [
        TextDataset(
            name=name,
            split=data.split or default_split,
            subset=data.subset if named else data.subset or calib.subset,
            column=data.column if named else data.column or calib.column,
        )
        for name in as_list(data.dataset or calib.dataset)
    ]


def _shown(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_shown, value))}]"
    return "null" if value is None else str(value)
