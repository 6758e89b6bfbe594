"""The embedded tokenizer, and the windows of the embedded text."""

import numpy as np
import pytest

from jaxq.embedded import Document, ModelConfig, encode, load_tokenizer, windows
from jaxq.errors import JaxqError


@pytest.mark.parametrize("text", ["Return a new list.\n\n    x = {'a': 1}", "\tüñí 漢字 🙂\r\n", "", " "])
def test_any_text_survives_the_round_trip(text):
    tokenizer = load_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_vocabulary_is_the_models():
    assert load_tokenizer().get_vocab_size() == ModelConfig().vocabulary == 2048


def test_end_of_text_precedes_each_document():
    tokenizer = load_tokenizer()
    stream = encode([Document("a", "one"), Document("b", "two")], tokenizer)
    assert stream.dtype == np.int64
    assert stream.tolist() == [0, *tokenizer.encode("one").ids, 0, *tokenizer.encode("two").ids]


def test_windows_cut_the_stream_in_order():
    longer, shorter = windows("eval", 256), windows("eval", 64)
    assert longer.shape[1] == 256 and len(longer) > 50
    np.testing.assert_array_equal(longer.ravel(), shorter.ravel()[: longer.size])
    assert longer.min() >= 0 and longer.max() < 2048


@pytest.mark.parametrize("length", [1, 10**9])
def test_impossible_window_length_is_refused(length):
    with pytest.raises(JaxqError, match=f"windows of {length} tokens"):
        windows("eval", length)
