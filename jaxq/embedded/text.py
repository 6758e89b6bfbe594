"""The documentation of the running Python as text, in three splits: evaluation, calibration and training.

The text has two sources that ship with every CPython: the topics of ``help()`` (`pydoc_data.topics`), and the
docstrings of the standard library, which `ast` reads from the source files. No source file is imported or run, and the
package stores no text.

A document is a topic or the docstrings of a source file. A hash of the document's name decides its split, so that the
split does not depend on the Python version, the platform or the order of reading. Topics quote each other, and modules
share docstrings. Each paragraph therefore stays only in the first document that has it, in the order eval, calib,
train: training text has no paragraph of the other two splits.
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
# Folders without documentation, or that some installations lack.
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
    """The split of a document, from the SHA-256 of its name.

    Example:
        >>> split_of("topic/debugger"), split_of("stdlib/base64.py")
        ('eval', 'calib')
    """
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    if share < _EVAL_SHARE:
        return "eval"
    return "calib" if share < _EVAL_SHARE + _CALIB_SHARE else "train"


def documents(split: Split) -> tuple[Document, ...]:
    """The documents of one split, sorted by name.

    Paragraphs of 60 characters or more are dropped if an earlier document of the split has them, or a document of an
    earlier split in the order eval, calib, train. Files of later splits are not read.

    Args:
        split: "eval", "calib" or "train".

    Returns:
        Documents of at least 200 characters. Texts differ between Python versions; `text_hash` identifies them.

    Raises:
        JaxqError: the split is unknown, or this Python has no topics or no source of its standard library.

    Example:
        >>> {split_of(document.name) for document in documents("eval")}
        {'eval'}
    """
    if split not in SPLITS:
        raise JaxqError(f"unknown split {split!r}: the splits are {', '.join(SPLITS)}")
    seen: set[bytes] = set()
    kept: tuple[Document, ...] = ()
    # Earlier splits are read for their paragraphs; the documents of the last one read are the result.
    for split_to_read in SPLITS[: SPLITS.index(split) + 1]:
        pruned = (_without_seen(document, seen) for document in _read(split_to_read))
        kept = tuple(document for document in pruned if len(document.text) >= _MIN_CHARACTERS)
    if not kept:
        raise JaxqError(f"no documentation of split {split!r} in {sysconfig.get_path('stdlib')}")
    return kept


def text_hash(texts: Iterable[Document]) -> str:
    """SHA-256 over the names and texts of documents, in hexadecimal: identifies the text of a measurement."""
    digest = hashlib.sha256()
    for document in texts:
        for string in (document.name, document.text):
            encoded = string.encode("utf-8")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _without_seen(document: Document, seen: set[bytes]) -> Document:
    """The document without the paragraphs that are in ``seen``; the others are added to ``seen``."""
    kept = []
    for paragraph in document.text.split("\n\n"):
        # The heading is cut off, so that equal docstrings of two classes have one key.
        words = " ".join(re.sub(r"\A.*:\n", "", paragraph).split())
        if len(words) >= _MIN_SHARED_CHARACTERS:
            key = hashlib.sha256(words.encode("utf-8")).digest()
            if key in seen:
                continue
            seen.add(key)
        kept.append(paragraph)
    return Document(document.name, "\n\n".join(kept).strip())


def _read(split: Split) -> Iterator[Document]:
    """All documents of a split with all their paragraphs, sorted by name."""
    paths = {name: None for name in _topics()} | _source_files()  # a topic has no path
    for name in sorted(paths):
        if split_of(name) == split:
            path = paths[name]
            yield Document(name, _topics()[name] if path is None else _docstrings(path))


def _topics() -> dict[str, str]:
    """The topics of ``help()`` by document name."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise JaxqError("this Python has no pydoc_data.topics: jaxq's embedded text needs a full CPython") from error
    return {f"topic/{name}": text for name, text in topics.items()}


def _source_files() -> dict[str, Path]:
    """The source files of the standard library by document name, without those of skipped folders."""
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "ast.py").is_file():
        raise JaxqError(f"no source of the standard library in {root}: jaxq's embedded text needs its .py files")
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                files[f"stdlib/{path.relative_to(root).as_posix()}"] = path
    return files


def _docstrings(path: Path) -> str:
    """The docstrings of a source file in order, each below a heading with its class or function."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise JaxqError(f"cannot read the standard library's {path}: {error}") from error
    return "\n\n".join(_described(tree, prefix=""))


def _described(node: ast.AST, prefix: str) -> Iterator[str]:
    """Heading and docstring of a node, then those of the classes and functions within it."""
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
