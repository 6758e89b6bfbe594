"""Token ids for the embedded model: its tokenizer, and the windows of a split."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jaxq.embedded.text import Document, Split, documents
from jaxq.errors import JaxqError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0


def load_tokenizer() -> Tokenizer:
    """The embedded model's tokenizer: byte-level BPE of 2048 tokens, which encodes any text."""
    return Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))


def encode(texts: Iterable[Document], tokenizer: Tokenizer) -> np.ndarray:
    """One stream of token ids, with the end-of-text token before each document.

    Args:
        texts: Documents, in the order of the stream.
        tokenizer: Result of `load_tokenizer`.

    Returns:
        int64 [tokens].
    """
    encodings = tokenizer.encode_batch([document.text for document in texts])
    return np.array([i for encoding in encodings for i in [END_OF_TEXT_ID, *encoding.ids]], dtype=np.int64)


def windows(split: Split, length: int = 256) -> np.ndarray:
    """The token stream of a split, cut into windows of equal length; an incomplete last window is dropped.

    Args:
        split: "eval", "calib" or "train"; see `jaxq.embedded.text.documents`.
        length: Tokens a window. The model was trained on windows of 256; longer ones give no meaningful figures.

    Returns:
        int64 [windows, length].

    Raises:
        JaxqError: ``length`` is below 2 or above the split's number of tokens.
    """
    stream = encode(documents(split), load_tokenizer())
    if not 2 <= length <= stream.size:
        raise JaxqError(
            f"windows of {length} tokens: the length must lie between 2 and the split's {stream.size} tokens"
        )
    count = stream.size // length
    return stream[: count * length].reshape(count, length)
