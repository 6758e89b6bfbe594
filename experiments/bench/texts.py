"""Texts of `accuracy.py` and `curves.py`: calibration rows drawn with a seed, held-out text like and unlike theirs.

Calibration and "like" are Python's own documentation: for SmolLM2 even- and odd-numbered topics (`pydoc_data`), for the
embedded model its splits `calib` and `eval`. "Unlike" is prose from a folder of text or HTML files.
"""

import html
import pydoc_data.topics
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jaxq import embedded
from jaxq.embedded.text import Split

LENGTH = 256


def topic_ids(tokenizer: Tokenizer, first: int) -> np.ndarray:
    """Token ids of every second topic, as `make_smollm2.py` has them."""
    names = sorted(pydoc_data.topics.topics)[first::2]
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in names)
    return _ids(tokenizer, re.sub(r'[=*\-~"]{4,}', "", text))


def split_ids(split: Split) -> np.ndarray:
    """Token ids of a split of the embedded model's text, a stream of whole documents."""
    return embedded.encode(embedded.documents(split), embedded.load_tokenizer())


def prose_ids(tokenizer: Tokenizer, folder: Path) -> np.ndarray:
    """Token ids of a folder's .html, .txt and .md files, without markup and listings."""
    texts = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".html", ".txt", ".md")):
        text = path.read_text(errors="replace")
        if path.suffix == ".html":
            body = re.search(r"<main>(.*?)</main>", text, re.DOTALL)
            text = re.sub(r"<pre.*?</pre>", "", body[1] if body else text, flags=re.DOTALL)
            text = html.unescape(re.sub(r"<[^>]+>", "", text))
        texts.append(text)
    return _ids(tokenizer, "\n\n".join(texts))


def drawn_rows(ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows [count, 256] that do not overlap, in random order, as long as the text goes; then others."""
    rng = np.random.default_rng(seed)
    offset = int(rng.integers(0, LENGTH))
    starts = rng.permutation(np.arange(offset, len(ids) - LENGTH, LENGTH))
    more = rng.integers(0, len(ids) - LENGTH, size=max(0, count - len(starts)))
    return np.stack([ids[s : s + LENGTH] for s in np.concatenate([starts, more])[:count]]).astype(np.int64)


def spread_rows(ids: np.ndarray, count: int, length: int) -> np.ndarray:
    """Rows [count, length] spread evenly over a text."""
    starts = np.linspace(0, len(ids) - length - 1, count).astype(int)
    return np.stack([ids[s : s + length] for s in starts]).astype(np.int64)


def _ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer.encode(re.sub(r"\n{3,}", "\n\n", text), add_special_tokens=False).ids, np.int64)
