"""Token ids of texts: of files and folders, and of the documentation that this Python carries."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jaxq.embedded import windows
from jaxq.embedded.text import Split
from jaxq.errors import JaxqError
from jaxq.inputs import TOKENS


def embedded_samples(split: Split, samples: int, length: int) -> dict[str, np.ndarray]:
    """Token ids [samples, length] of the documentation that this Python carries, evenly spread over the split."""
    return {TOKENS: _spread(windows(split, length), samples)}


def text_samples(text: Path, tokenizer: Path, samples: int, length: int) -> dict[str, np.ndarray]:
    """Token ids [samples, length] of a text file, or of the ``*.txt`` and ``*.md`` files of a folder, evenly spread.

    Raises:
        JaxqError: a file is missing or unreadable, or the text is shorter than one sample.
    """
    if not tokenizer.is_file():
        raise JaxqError(f"tokenizer file {str(tokenizer)!r} does not exist: give calib.tokenizer=<tokenizer.json>")
    try:
        encoder = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise JaxqError(f"tokenizer file {str(tokenizer)!r} cannot be read: {error}") from error
    encoder.no_truncation()  # settings of the file that are not for a whole text
    encoder.no_padding()
    ids = np.array(encoder.encode(_read_text(text)).ids, np.int64)
    if len(ids) < length:
        raise JaxqError(f"text {str(text)!r} has {len(ids)} tokens: one sample needs {length}; give more text")
    cut = len(ids) // length * length
    return {TOKENS: _spread(ids[:cut].reshape(-1, length), samples)}


def _read_text(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise JaxqError(f"text {str(path)!r} does not exist: give a text file, or a folder of .txt and .md files")
    try:
        return "\n\n".join(p.read_text(encoding="utf8") for p in files)
    except (OSError, UnicodeDecodeError) as error:
        raise JaxqError(f"text {str(path)!r} cannot be read as UTF-8: {error}") from error


def _spread(rows: np.ndarray, samples: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(samples, len(rows))).round().astype(int)]
