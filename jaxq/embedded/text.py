"""Documentation text of the running Python, split into train, calibration and evaluation parts.

Two sources that any CPython carries: the topics of ``help()`` (`pydoc_data.topics`) and the docstrings of the standard
library, read with `ast` from its source files. Nothing is imported or run, and nothing is stored in the package.

One document is one topic or one source file. Its split follows from a hash of its name alone, so it does not depend on
the Python version, the platform or the order of reading. Topics quote each other and modules share docstrings;
therefore a paragraph is kept only where it occurs first, in the order eval, calib, train: training text never
contains a paragraph of the other two.
"""

import ast
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxq.errors import JaxqError

Split = Literal["eval", "calib", "train"]
SPLITS: tuple[Split, ...] = ("eval", "calib", "train")

_EVAL_SHARE = 0.06
_CALIB_SHARE = 0.04
_MIN_CHARACTERS = 200
_MIN_SHARED_CHARACTERS = 60
# Not documentation, or not in every installation.
_SKIPPED_FOLDERS = frozenset(
    ["__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "pydoc_data"]
    + ["site-packages", "test", "tests", "turtledemo"]
)


@dataclass(frozen=True)
class Document:
    """A piece of documentation: a ``help()`` topic or the docstrings of one source file."""

    name: str
    text: str


def split_of(name: str) -> Split:
    """The split of a document, from the SHA-256 of its name alone."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    if share < _EVAL_SHARE:
        return "eval"
    return "calib" if share < _EVAL_SHARE + _CALIB_SHARE else "train"


def documents(split: Split) -> tuple[Document, ...]:
    """The documents of one split of the running Python's documentation, sorted by name.

    Only the files of this split and of those before it in the order eval, calib, train are read, because a split gives
    up the paragraphs (of 60 characters or more) that occur in an earlier one or earlier in itself.

    Args:
        split: "eval", "calib" or "train".

    Returns:
        Documents of at least 200 characters. Texts differ between Python versions; `text_hash` tells them apart.

    Raises:
        JaxqError: unknown split, or this Python carries no topics or no source of its standard library.

    Example:
        >>> {split_of(document.name) for document in documents("eval")}
        {'eval'}
    """
    if split not in SPLITS:
        raise JaxqError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    seen: set[bytes] = set()
    kept: tuple[Document, ...] = ()
    for wanted in SPLITS[: SPLITS.index(split) + 1]:
        pruned = (_without_seen(document, seen) for document in _read(wanted))
        kept = tuple(document for document in pruned if len(document.text) >= _MIN_CHARACTERS)
    if not kept:
        raise JaxqError(f"no documentation of split {split!r} in {sysconfig.get_path('stdlib')}")
    return kept


def text_hash(texts: Iterable[Document]) -> str:
    """SHA-256 over the names and texts of documents, in hexadecimal: says which text a figure was measured on."""
    digest = hashlib.sha256()
    for document in texts:
        for part in (document.name, document.text):
            encoded = part.encode("utf-8")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _without_seen(document: Document, seen: set[bytes]) -> Document:
    """Drop the paragraphs that are in `seen`; add the others to it (the only place that mutates `seen`)."""
    kept = []
    for paragraph in document.text.split("\n\n"):
        # Without its heading, so that a docstring that two classes share is found.
        words = " ".join(re.sub(r"\A.*:\n", "", paragraph).split())
        if len(words) >= _MIN_SHARED_CHARACTERS:
            key = hashlib.sha256(words.encode("utf-8")).digest()
            if key in seen:
                continue
            seen.add(key)
        kept.append(paragraph)
    return Document(document.name, "\n\n".join(kept).strip())


def _read(split: Split) -> Iterator[Document]:
    """All documents of a split as they stand, sorted by name."""
    readers = {name: None for name in _topics()} | _source_files()
    for name in sorted(readers):
        if split_of(name) == split:
            path = readers[name]
            yield Document(name, _topics()[name] if path is None else _docstrings(path))


def _topics() -> dict[str, str]:
    """The topics of ``help()`` by document name."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise JaxqError("this Python has no pydoc_data.topics; jaxq's embedded text needs a full CPython") from error
    return {f"topic/{name}": text for name, text in topics.items()}


def _source_files() -> dict[str, Path]:
    """The source files of the standard library by document name, without tests and other noise."""
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "ast.py").is_file():
        raise JaxqError(f"no source of the standard library in {root}; jaxq's embedded text needs its .py files")
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                files[f"stdlib/{path.relative_to(root).as_posix()}"] = path
    return files


def _docstrings(path: Path) -> str:
    """The docstrings of a source file in its order, each below the heading of its class or function."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise JaxqError(f"cannot read the standard library's {path}: {error}") from error
    return "\n\n".join(_described(tree, prefix=""))


def _described(node: ast.AST, prefix: str) -> Iterator[str]:
    """Heading and docstring of `node`, then those of the classes and functions in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        heading = ""
        if isinstance(node, ast.ClassDef):
            heading = f"class {prefix}{node.name}:\n"
        elif not isinstance(node, ast.Module):
            heading = f"{prefix}{node.name}({ast.unparse(node.args)}):\n"
        text = ast.get_docstring(node)
        if text and (text := text.strip()):
            yield heading + text
        if isinstance(node, ast.ClassDef):
            prefix = f"{prefix}{node.name}."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _described(child, prefix)
