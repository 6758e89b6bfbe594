"""``jaxq cache``: what lies in the cache, and how to delete it."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from jaxq.errors import JaxqError
from jaxq.files.cache_use import LOCKS, cache_to_itself
from jaxq.pipeline.job import default_cache


@dataclass(frozen=True)
class Kind:
    """A kind of entries in the cache.

    Attributes:
        name: Its name on the command line.
        patterns: Shell patterns of the entries' names.
        purpose: What the entries are.
        one: The entries lie in one folder: it is deleted as a whole.
    """

    name: str
    patterns: tuple[str, ...]
    purpose: str
    one: bool = False


KINDS = (
    Kind("moments", ("moments-*",), "second moments of models on calibration data"),
    Kind("runs", ("run-*",), "work of stopped runs, which resume from it"),
    Kind("exports", ("hf-*", ".hf-*"), "Hugging Face models as ONNX files"),
    Kind("drawn", ("drawn",), "samples of text that models wrote themselves", one=True),
    Kind("compiled", ("xla",), "functions that JAX compiled", one=True),
    Kind("embedded", ("embedded-*",), "the model that ships with jaxq, as an ONNX file"),
)
"""All that jaxq keeps in a cache, but for the locks."""


@dataclass(frozen=True)
class Usage:
    """The size of the entries of one kind.

    Attributes:
        kind: The name of the kind; "other" for what jaxq did not make and never deletes.
        entries: Number of files and folders; of those in one folder, what is directly in it.
        nbytes: Bytes of all their files.
        purpose: What the entries are.
    """

    kind: str
    entries: int
    nbytes: int
    purpose: str


def list_cache(folder: Path | None = None, as_json: bool = False) -> None:
    """Prints what lies in the cache: the number of entries of each kind, their size, and what they are.

    Args:
        folder: The cache; None for `jaxq.pipeline.job.default_cache`.
        as_json: Print an object instead of a table.

    Raises:
        JaxqError: there is something else than a folder.
    """
    cache = _cache(folder)
    usages = [usage for usage in _usages(cache) if usage.entries]
    if as_json:
        kinds = [asdict(usage) for usage in usages]
        print(json.dumps({"path": str(cache), "nbytes": sum(u.nbytes for u in usages), "kinds": kinds}, indent=1))
        return
    console = Console()
    _print(console, f"{cache}: {decimal(sum(usage.nbytes for usage in usages))}")
    if usages:
        table = Table("kind", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("entries", "size"):
            table.add_column(title, justify="right")
        table.add_column("what it is")
        for usage in usages:
            table.add_row(usage.kind, str(usage.entries), decimal(usage.nbytes), usage.purpose)
        console.print(table)
        _print(console, "jaxq cache clear KIND deletes one kind, jaxq cache clear all; runs make again what they need")


def clear_cache(kind: str | None, folder: Path | None, confirm: Callable[[str], bool] | None) -> None:
    """Deletes the entries of one kind, or of all; entries that jaxq did not make stay.

    Args:
        kind: The name of a kind; None for all.
        folder: The cache; None for `jaxq.pipeline.job.default_cache`.
        confirm: Asks the user a question; None deletes without asking.

    Raises:
        JaxqError: there is no such kind, a run uses the cache, or nobody can be asked.
    """
    names = [known.name for known in KINDS]
    if kind is not None and kind not in names:
        raise JaxqError(f"there is no kind {kind!r} in the cache: choose one of {', '.join(names)}, or give none")
    cache, console = _cache(folder), Console()
    chosen = [usage for usage in _usages(cache) if usage.entries and usage.kind in ([kind] if kind else names)]
    if not chosen:
        _print(console, f"{cache}: nothing to delete")
        return
    size = decimal(sum(usage.nbytes for usage in chosen))
    if confirm is not None:
        if not sys.stdin.isatty():
            raise JaxqError("there is no terminal to ask in: give --yes to delete without a question")
        if not confirm(f"Delete {', '.join(usage.kind for usage in chosen)} ({size}) in {cache}?"):
            _print(console, "nothing was deleted")
            return
    with cache_to_itself(cache):
        for known in KINDS:
            for path in _entries(cache, known) if known.name in {usage.kind for usage in chosen} else ():
                _delete(path)
    _print(console, f"deleted: {', '.join(usage.kind for usage in chosen)}, {size}")


def _cache(folder: Path | None) -> Path:
    cache = folder or default_cache()
    if cache.exists() and not cache.is_dir():
        raise JaxqError(f"the cache {str(cache)!r} is a file: give a folder")
    return cache


def _usages(cache: Path) -> Iterator[Usage]:
    """What each kind takes; then what is none of them."""
    rest = set(cache.iterdir()) if cache.is_dir() else set()
    for kind in KINDS:
        entries = _entries(cache, kind)
        rest -= set(entries)
        count = sum(len(list(entry.iterdir())) for entry in entries if entry.is_dir()) if kind.one else len(entries)
        yield Usage(kind.name, count, sum(map(_nbytes, entries)), kind.purpose)
    others = [path for path in rest if path.name != LOCKS]
    yield Usage("other", len(others), sum(map(_nbytes, others)), "not of jaxq, and never deleted")


def _entries(cache: Path, kind: Kind) -> list[Path]:
    return sorted({path for pattern in kind.patterns for path in cache.glob(pattern)}) if cache.is_dir() else []


def _nbytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count nothing, and files that vanish meanwhile neither."""
    if path.is_symlink():
        return 0
    if path.is_dir():
        return sum(map(_nbytes, path.iterdir()))
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
