"""Token ids of texts: of files and folders, of datasets, and of the documentation that this Python carries.

A sample is what the model would be given: the tokenizer's own special tokens stand around each, "[CLS] ... [SEP]" for a
BERT and a leading BOS for a Llama, as its post-processor says. Chat templates are left alone: they are for dialogues,
and a text is none.
"""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jaxq.embedded import windows
from jaxq.embedded.text import Split
from jaxq.errors import JaxqError
from jaxq.runtime.inputs import TOKENS

TEXT_FILES = (".txt", ".md", ".rst", ".text", ".markdown")
"""Files of a folder that are read; a file that is named itself may be called as it likes."""


def embedded_samples(split: Split, samples: int, length: int) -> dict[str, np.ndarray]:
    """Token ids [samples, length] of the documentation that this Python carries, evenly spread over the split."""
    return {TOKENS: spread(windows(split, length), samples)}


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``, without the cutting and padding that it may ask for.

    Raises:
        JaxqError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise JaxqError(f"tokenizer file {str(path)!r} does not exist: give calib.tokenizer=<tokenizer.json>")
    try:
        encoder = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise JaxqError(f"tokenizer file {str(path)!r} cannot be read: {error}") from error
    encoder.no_truncation()  # settings of the file that are not for a whole text
    encoder.no_padding()
    return encoder


def token_rows(text: str, encoder: Tokenizer, length: int, name: str) -> np.ndarray:
    """A text as samples of equal length, in order; a shorter rest is dropped.

    Args:
        text: The text, tokenized as a whole and then cut.
        encoder: A tokenizer; see `load_tokenizer`.
        length: Tokens of a sample, its special tokens included.
        name: What the text is called in errors.

    Returns:
        int64 [samples, length].

    Raises:
        JaxqError: the text is shorter than one sample, or a sample holds nothing but special tokens.
    """
    before, after = special_tokens(encoder)
    inner = length - len(before) - len(after)
    if inner < 1:
        raise JaxqError(f"samples of {length} tokens hold only the tokenizer's special tokens: give a greater length")
    ids = np.array(encoder.encode(text, add_special_tokens=False).ids, np.int64)
    if len(ids) < inner:
        raise JaxqError(f"{name} has {len(ids)} tokens: one sample needs {inner}; give more text")
    rows = ids[: len(ids) // inner * inner].reshape(-1, inner)
    ends = [np.tile(np.array(part, np.int64), (len(rows), 1)) for part in (before, after)]
    return np.concatenate([ends[0], rows, ends[1]], axis=1)


def special_tokens(encoder: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> special_tokens(Tokenizer(models.BPE()))
        ([], [])
    """
    if not encoder.num_special_tokens_to_add(False):
        return [], []
    found = encoder.encode("a")
    inner = [i for i, special in enumerate(found.special_tokens_mask) if not special]
    if not inner:  # a tokenizer that knows no "a": of two or more, the last one stands behind
        return found.ids[: max(1, len(found.ids) - 1)], found.ids[1:][-1:]
    return found.ids[: inner[0]], found.ids[inner[-1] + 1 :]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, or of all text files of a folder and its subfolders, sorted by name.

    Raises:
        JaxqError: there is none, or it is not UTF-8.
    """
    kinds = f"{', '.join(TEXT_FILES[:-1])} and {TEXT_FILES[-1]}"
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_FILES and p.is_file())
        if not files:
            raise JaxqError(f"folder {str(path)!r} holds no text: files that end in {kinds} are read")
    elif path.is_file():
        files = [path]
    else:
        raise JaxqError(f"text {str(path)!r} does not exist: give a text file, or a folder of {kinds} files")
    parts = []
    for file in files:
        try:
            parts.append(file.read_text(encoding="utf8"))
        except (OSError, UnicodeDecodeError) as error:
            raise JaxqError(f"text {str(file)!r} cannot be read as UTF-8: {error}") from error
    return "\n\n".join(parts)


def spread(rows: np.ndarray, samples: int) -> np.ndarray:
    """At most so many rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(samples, len(rows))).round().astype(int)]
