"""Text of Hugging Face datasets. The library ``datasets`` is an extra, and is imported on the first use."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jaxq.errors import JaxqError

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}
_CHARACTERS_PER_TOKEN = 16  # of the text that is read: far more than tokens have


@dataclass(frozen=True)
class TextDataset:
    """A column of text in a dataset.

    Attributes:
        name: A dataset of the hub; a folder of parquet, JSON, CSV or text files, or written by ``save_to_disk``; or a
            file.
        split: "train", "test", ...
        subset: Name of the configuration, for a dataset that has several.
        column: Name of the column; None for the column "text", or the only column of strings.
    """

    name: str
    split: str
    subset: str | None = None
    column: str | None = None

    @property
    def title(self) -> str:
        """The dataset's name in messages."""
        return f"dataset {self.name!r}" + (f" ({self.subset})" if self.subset else "") + f", split {self.split!r}"


def dataset_text(source: TextDataset, tokens: int) -> str:
    """The texts of a dataset's first rows, joined by blank lines.

    Args:
        source: The dataset. It is read row by row, so that a large dataset is not downloaded as a whole.
        tokens: Number of tokens that the text has to give; reading stops after 16 characters for each.

    Raises:
        JaxqError: the extra is not installed, or the dataset cannot be read or lacks the split or the column.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise JaxqError(
            f"{source.title} needs the library datasets, which is not installed: install jaxq with its extra datasets, "
            'as in pip install -e ".[cpu,datasets]"'
        ) from error
    datasets.disable_progress_bars()
    try:
        rows = iter(_open(datasets, source))
        first = next(rows, None)
        if first is None:
            raise JaxqError(f"{source.title} has no rows")
        return _join(chain([first], rows), _column(first, source), tokens * _CHARACTERS_PER_TOKEN)
    except JaxqError:
        raise
    except Exception as error:  # datasets raises those of file formats, networks and file systems
        reason = " ".join(str(error).split())[:200]
        raise JaxqError(
            f"{source.title} cannot be read: {type(error).__name__}: {reason}; check name, split and network, "
            "or give a folder of parquet, JSON, CSV or text files"
        ) from error


def _open(datasets: Any, source: TextDataset) -> Iterable[Mapping[str, object]]:
    """The rows of a split, read as they are asked for."""
    path = Path(source.name)
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        saved = datasets.load_from_disk(str(path))
        if not isinstance(saved, dict):
            return saved  # a single split, whatever its name
        if source.split not in saved:
            raise JaxqError(f"{source.title} does not exist: choose from {', '.join(saved)}")
        return saved[source.split]
    if path.is_file():
        builder = _BUILDERS.get(path.suffix.lower())
        if builder is None:
            raise JaxqError(f"{source.title} is a file of unknown kind: give one that ends in {', '.join(_BUILDERS)}")
        return datasets.load_dataset(builder, data_files={source.split: str(path)}, split=source.split, streaming=True)
    return datasets.load_dataset(source.name, source.subset, split=source.split, streaming=True)


def _column(row: Mapping[str, object], source: TextDataset) -> str:
    """Name of the column with text, from the first row."""
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if source.column is not None:
        if source.column not in row:
            raise JaxqError(f"{source.title} has no column {source.column!r}: choose from {', '.join(row)}")
        if source.column not in strings:
            raise JaxqError(f"{source.title} has no text in column {source.column!r}: choose {' or '.join(strings)}")
        return source.column
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        raise JaxqError(f"{source.title} has the columns {', '.join(row)}: give the one with the text as column=...")
    return strings[0]


def _join(rows: Iterable[Mapping[str, object]], column: str, characters: int) -> str:
    """The texts of the first rows that have so many characters together."""
    texts, count = [], 0
    for row in rows:
        text = row[column]
        if isinstance(text, str) and text.strip():  # rows may be empty
            texts.append(text)
            count += len(text)
        if count >= characters:
            break
    return "\n\n".join(texts)
