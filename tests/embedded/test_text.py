"""The embedded text: splits are stable and repeatable, and share no paragraph."""

import re
import sysconfig

import pytest

from jaxq.embedded import text
from jaxq.errors import JaxqError


def paragraphs(documents: tuple[text.Document, ...]) -> list[str]:
    """Long paragraphs without headings and line breaks."""
    texts = (text for document in documents for text in document.text.split("\n\n"))
    bodies = (" ".join(re.sub(r"\A.*:\n", "", text).split()) for text in texts)
    return [body for body in bodies if len(body) >= 60]


@pytest.fixture(scope="module")
def splits() -> dict[text.Split, tuple[text.Document, ...]]:
    return {split: text.documents(split) for split in text.SPLITS}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("topic/debugger", "eval"),
        ("topic/operator-summary", "eval"),
        ("stdlib/json/__init__.py", "eval"),
        ("stdlib/webbrowser.py", "eval"),
        ("topic/objects", "calib"),
        ("stdlib/base64.py", "calib"),
        ("stdlib/difflib.py", "train"),
        ("topic/compound", "train"),
    ],
)
def test_a_name_keeps_its_split(name, split):
    assert text.split_of(name) == split


def test_documents_are_in_the_split_of_their_name(splits):
    for split, documents in splits.items():
        assert {text.split_of(document.name) for document in documents} == {split}
        names = [document.name for document in documents]
        assert names == sorted(set(names))


def test_no_paragraph_occurs_twice_within_or_between_splits(splits):
    everything = [paragraph for documents in splits.values() for paragraph in paragraphs(documents)]
    assert len(everything) > 5000
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("split", ["eval", "calib"])
def test_reading_again_gives_the_same_text(splits, split):
    assert text.documents(split) == splits[split]
    assert text.text_hash(text.documents(split)) == text.text_hash(splits[split])


def test_sizes_are_those_of_a_small_held_out_part(splits):
    sizes = {split: sum(len(document.text) for document in documents) for split, documents in splits.items()}
    assert sizes["train"] > 1_500_000
    assert 40_000 < sizes["eval"] < 0.1 * sizes["train"]
    assert 30_000 < sizes["calib"] < 0.1 * sizes["train"]
    assert all(len(document.text) >= 200 for documents in splits.values() for document in documents)


def test_hash_depends_on_names_texts_and_their_border():
    hashes = [text.text_hash([text.Document(name, body)]) for name, body in [("a", "bc"), ("ab", "c"), ("a", "bd")]]
    assert len(set(hashes)) == 3


def test_headings_name_classes_and_signatures(tmp_path):
    source = tmp_path / "module.py"
    source.write_text('"""Top."""\nclass A:\n    """About A."""\n    def f(self, x=1):\n        """About f."""\n')
    assert text._docstrings(source) == "Top.\n\nclass A:\nAbout A.\n\nA.f(self, x=1):\nAbout f."


def test_unknown_split_is_refused():
    with pytest.raises(JaxqError, match="unknown split 'test'"):
        text.documents("test")  # pyright: ignore[reportArgumentType]


def test_python_without_library_source_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(JaxqError, match="no source of the standard library"):
        text.documents("eval")
