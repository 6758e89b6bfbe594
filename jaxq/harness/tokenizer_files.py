"""The tokenizer of a run's text: the one that is given, else the one beside the model."""

import os
from pathlib import Path

from jaxq import embedded
from jaxq.harness.config import Config


def find_tokenizer(config: Config, part: str, source: Path) -> Path | None:
    """The tokenizer that is given for "calib" or "eval", else the one beside the model; None without one.

    Args:
        config: The configuration.
        part: "calib" or "eval"; the evaluation takes the calibration's where it has none of its own.
        source: The model's file.
    """
    data = config.calib if part == "calib" else config.eval
    if given := data.tokenizer or config.calib.tokenizer:
        return Path(given)
    path = tokenizer_folder(config, source) / "tokenizer.json"
    return path if path.is_file() else None


def tokenizer_folder(config: Config, source: Path) -> Path:
    """The folder in which a model's tokenizer is looked for."""
    folder = Path(embedded.__file__).parent if config.model.name == "embedded" else source.parent
    absolute = Path(os.path.abspath(folder))  # "." has no name
    if absolute.name == "onnx" and not (folder / "tokenizer.json").is_file():  # a repository's folder of exports
        return absolute.parent
    return folder
