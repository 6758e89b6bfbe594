"""Text of Hugging Face datasets; the library ``datasets`` is imported when it is first needed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jaxq.errors import JaxqError

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}
_CHARACTERS = 16  # read for each token that is wanted: far more than a token has


@dataclass(frozen=True)
class TextDataset:
    """Where text lies.

    Attributes:
        name: A dataset of the hub; a folder of parquet, JSON, CSV or text files, or of ``save_to_disk``; or a file.
        split: "train", "test", ...
        subset: Which of a dataset's configurations, where it has several.
        column: The column with text; None: the one named "text", or the only one that holds strings.
    """

    name: str
    split: str
    subset: str | None = None
    column: str | None = None

    @property
    def title(self) -> str:
        """What it is called in sentences."""
        return f"dataset {self.name!r}" + (f" ({self.subset})" if self.subset else "") + f", split {self.split!r}"


def dataset_text(source: TextDataset, tokens: int) -> str:
    """The texts of a dataset's first rows, blank lines between them.

    Args:
        source: The dataset. It is read row by row, so that a big one is not downloaded whole.
        tokens: How many tokens are wanted; reading stops where there is surely enough text for them.

    Raises:
        JaxqError: the extra is not installed; there is no such dataset, split, or column of text; or it cannot be read.
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
        return _join(chain([first], rows), _column(first, source), tokens * _CHARACTERS)
    except JaxqError:
        raise
    except Exception as error:  # the library passes on exceptions of many others
        what = " ".join(str(error).split())[:200]
        raise JaxqError(
            f"{source.title} cannot be read: {type(error).__name__}: {what}; check name, split and network, "
            "or give a folder of parquet, JSON, CSV or text files"
        ) from error


def _open(datasets: Any, source: TextDataset) -> Iterable[Mapping[str, object]]:
    path = Path(source.name)
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        found = datasets.load_from_disk(str(path))
        if not isinstance(found, dict):
            return found  # a single split, whatever its name
        if source.split not in found:
            raise JaxqError(f"{source.title} does not exist: there are {', '.join(found)}")
        return found[source.split]
    if path.is_file():
        builder = _BUILDERS.get(path.suffix.lower())
        if builder is None:
            raise JaxqError(f"{source.title} is a file of an unknown kind: {', '.join(_BUILDERS)} are read")
        return datasets.load_dataset(builder, data_files={source.split: str(path)}, split=source.split, streaming=True)
    return datasets.load_dataset(source.name, source.subset, split=source.split, streaming=True)


def _column(row: Mapping[str, object], source: TextDataset) -> str:
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if source.column is not None:
        if source.column not in row:
            raise JaxqError(f"{source.title} has no column {source.column!r}: there are {', '.join(row)}")
        if source.column not in strings:
            raise JaxqError(f"{source.title} has no text in the column {source.column!r}: take {' or '.join(strings)}")
        return source.column
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        raise JaxqError(f"{source.title} has the columns {', '.join(row)}: say with column=... which holds the text")
    return strings[0]


def _join(rows: Iterable[Mapping[str, object]], column: str, characters: int) -> str:
    parts, count = [], 0
    for row in rows:
        text = row[column]
        if isinstance(text, str) and text.strip():  # rows may be empty
            parts.append(text)
            count += len(text)
        if count >= characters:
            break
    return "\n\n".join(parts)
