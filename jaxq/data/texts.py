"""From text to samples of token ids: files, folders, and the documentation that ships with Python.

Each sample has the special tokens of the tokenizer's post-processor, as an input of the model has them: "[CLS] ...
[SEP]" for a BERT, a leading BOS for a Llama. Chat templates are not applied: a text is no dialogue.
"""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jaxq.embedded import windows
from jaxq.embedded.text import Split
from jaxq.errors import JaxqError
from jaxq.runtime.inputs import TOKENS

TEXT_FILES = (".txt", ".md", ".rst", ".text", ".markdown")
"""Endings of the files that are read from a folder; a file given by its path may have any name."""


def embedded_samples(split: Split, samples: int, length: int) -> dict[str, np.ndarray]:
    """Token ids [samples, length] of Python's own documentation, evenly spaced over the split.

    Args:
        split: "calib" or "eval"; see `jaxq.embedded.text`.
        samples: Number of samples at most.
        length: Tokens a sample.
    """
    return {TOKENS: spread(windows(split, length), samples)}


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``, without the truncation and padding that the file may set.

    Raises:
        JaxqError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise JaxqError(f"tokenizer file {str(path)!r} does not exist: give calib.tokenizer=<tokenizer.json>")
    try:
        encoder = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise JaxqError(f"tokenizer file {str(path)!r} cannot be read: {error}") from error
    encoder.no_truncation()  # those settings are for single inputs, and a whole text is encoded here
    encoder.no_padding()
    return encoder


def token_rows(text: str, encoder: Tokenizer, length: int, name: str) -> np.ndarray:
    """A text as samples of equal length, in order; an incomplete last sample is dropped.

    Args:
        text: The text, tokenized as a whole and then cut.
        encoder: A tokenizer; see `load_tokenizer`.
        length: Tokens a sample, special tokens included.
        name: The text's name in errors.

    Returns:
        int64 [samples, length].

    Raises:
        JaxqError: the text is shorter than one sample, or ``length`` leaves no room beside the special tokens.
    """
    before, after = special_tokens(encoder)
    inner = length - len(before) - len(after)
    if inner < 1:
        raise JaxqError(f"samples of {length} tokens have room for special tokens only: give a greater length")
    ids = np.array(encoder.encode(text, add_special_tokens=False).ids, np.int64)
    if len(ids) < inner:
        raise JaxqError(f"{name} has {len(ids)} tokens: one sample needs {inner}; give more text")
    rows = ids[: len(ids) // inner * inner].reshape(-1, inner)
    first, last = (np.tile(np.array(tokens, np.int64), (len(rows), 1)) for tokens in (before, after))
    return np.concatenate([first, rows, last], axis=1)


def special_tokens(encoder: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of the special tokens that the tokenizer puts before and after a text.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> special_tokens(Tokenizer(models.BPE()))
        ([], [])
    """
    if not encoder.num_special_tokens_to_add(False):
        return [], []
    encoding = encoder.encode("a")
    inner = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if not inner:  # a tokenizer without a token for "a": assume that the last of several special tokens is at the end
        return encoding.ids[: max(1, len(encoding.ids) - 1)], encoding.ids[1:][-1:]
    return encoding.ids[: inner[0]], encoding.ids[inner[-1] + 1 :]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, or of all text files (`TEXT_FILES`) of a folder and its subfolders, sorted by name.

    Raises:
        JaxqError: there is no such file or no text in the folder, or a file is not UTF-8.
    """
    endings = f"{', '.join(TEXT_FILES[:-1])} and {TEXT_FILES[-1]}"
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_FILES and p.is_file())
        if not files:
            raise JaxqError(f"folder {str(path)!r} has no text: give a folder with files that end in {endings}")
    elif path.is_file():
        files = [path]
    else:
        raise JaxqError(f"text {str(path)!r} does not exist: give a text file, or a folder of {endings} files")
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf8"))
        except (OSError, UnicodeDecodeError) as error:
            raise JaxqError(f"text {str(file)!r} cannot be read as UTF-8: {error}") from error
    return "\n\n".join(texts)


def spread(rows: np.ndarray, samples: int) -> np.ndarray:
    """At most ``samples`` of the rows, evenly spaced from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(samples, len(rows))).round().astype(int)]
