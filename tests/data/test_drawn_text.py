"""Text drawn from a language model: the distribution, caches, special tokens, storage."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from jaxq.data import drawn_text
from jaxq.data.drawn_text import BATCH, Drawing, TextDrawer, Vocabulary, draw_tokens, read_vocabulary
from jaxq.errors import JaxqError
from jaxq.runtime.language_model import TokenStream, open_language_model
from tests.genai.folders import RUNS, make_folder
from tests.support.cached_model import cached_model
from tests.support.encoders import IDS, encoder, with_logits

ALL = Vocabulary((), np.arange(IDS), ())


def silent() -> None:
    pass


def drawer(path: Path, folder: Path, vocabulary: Vocabulary = ALL) -> TextDrawer:
    model = open_language_model(path)
    assert not isinstance(model, str), model
    return TextDrawer(model, vocabulary, "hash", folder)


def test_tokens_have_the_models_probabilities():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    uniform = (np.arange(1000) + 0.5) / 1000
    drawn = draw_tokens(np.tile(logits, (1000, 1)), uniform, 1.0)
    assert np.bincount(drawn).tolist() == [100, 200, 300, 400]
    squares = np.square([0.1, 0.2, 0.3, 0.4])
    cold = draw_tokens(np.tile(logits, (1000, 1)), uniform, 0.5)
    np.testing.assert_allclose(np.bincount(cold) / 1000, squares / squares.sum(), atol=1e-3)
    masked = np.array([[-np.inf, 0.0, -np.inf]], np.float32)
    assert [int(draw_tokens(masked, np.array([u]), 1.0)[0]) for u in (0.0, 0.5, 1 - 1e-16)] == [1, 1, 1]


def test_the_text_follows_the_models_own_predictions(tmp_path):
    """Position by position, drawn tokens are those that the logits of the whole row give."""
    path = cached_model(tmp_path / "m.onnx")
    rows = drawer(path, tmp_path / "kept").rows(Drawing(12, 5), 3, silent)
    model = open_language_model(path)
    assert not isinstance(model, str)
    for number, row in enumerate(rows):
        uniform = np.random.default_rng((5, number)).random(12)
        assert row[0] == int(uniform[0] * IDS)
        for t in range(1, 12):
            logits = TokenStream(model).logits(row[None, :t])
            assert row[t] == draw_tokens(logits, uniform[t : t + 1], 1.0)[0]


def test_models_with_and_without_a_cache_write_the_same(tmp_path):
    with_cache = drawer(cached_model(tmp_path / "a.onnx"), tmp_path / "a")
    without = drawer(cached_model(tmp_path / "b.onnx", cache=False), tmp_path / "b")
    broken = drawer(cached_model(tmp_path / "c.onnx", broken=True), tmp_path / "c")
    assert (len(with_cache._model.caches), len(without._model.caches), len(broken._model.caches)) == (1, 0, 0)
    rows = with_cache.rows(Drawing(40, 0), 5, silent)  # more tokens than one width of a run without a cache
    np.testing.assert_array_equal(rows, without.rows(Drawing(40, 0), 5, silent))
    np.testing.assert_array_equal(rows, broken.rows(Drawing(40, 0), 5, silent))


def test_a_cache_runs_each_token_once(tmp_path, monkeypatch):
    tokens = []
    from jaxq.runtime import language_model

    source = drawer(cached_model(tmp_path / "a.onnx"), tmp_path / "a")
    real = language_model.run
    monkeypatch.setattr(
        language_model, "run", lambda s, o, feeds: tokens.append(feeds["input_ids"].size) or real(s, o, feeds)
    )
    source.rows(Drawing(20, 0), 4, silent)
    assert tokens == [4] * 19


@RUNS
@pytest.mark.parametrize("name", ["llama-fp32", "qwen3-fp32"])
def test_graphs_of_the_builder_use_their_caches(tmp_path, name):
    source = drawer(make_folder(name, tmp_path / name), tmp_path / "kept", Vocabulary((1,), np.arange(10), ()))
    assert len(source._model.caches) > 1
    rows = source.rows(Drawing(9, 0), 3, silent)
    assert rows.shape == (3, 9) and (rows[:, 0] == 1).all() and len(np.unique(rows)) > 9
    whole = open_language_model(tmp_path / name / "model.onnx")
    assert not isinstance(whole, str)
    for t in range(2, 9):
        logits = TokenStream(whole).logits(rows[:, :t])
        uniform = np.array([np.random.default_rng((0, i)).random(9)[t] for i in range(3)])
        np.testing.assert_array_equal(rows[:, t], draw_tokens(logits, uniform, 1.0))


def test_samples_do_not_depend_on_their_number_and_seeds_differ(tmp_path):
    path = cached_model(tmp_path / "m.onnx")
    few = drawer(path, tmp_path / "a").rows(Drawing(10, 0), 3, silent)
    many = drawer(path, tmp_path / "b").rows(Drawing(10, 0), BATCH + 4, silent)
    other = drawer(path, tmp_path / "c").rows(Drawing(10, 1), 3, silent)
    np.testing.assert_array_equal(few, many[:3])
    assert len(np.unique(many, axis=0)) == len(many)
    assert not (few == other).all(axis=1).any()


def test_a_stopped_run_goes_on_and_damaged_files_are_drawn_again(tmp_path, monkeypatch):
    path, drawing = cached_model(tmp_path / "m.onnx"), Drawing(6, 0)
    expected = drawer(path, tmp_path / "a").rows(drawing, 2 * BATCH, silent)
    source, steps = drawer(path, tmp_path / "b"), iter(range(8))

    def stop() -> None:
        if next(steps) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.rows(drawing, 2 * BATCH, stop)
    (kept,) = (tmp_path / "b").iterdir()  # the first batch, whole, and nothing half-written
    runs = []
    real = TokenStream.logits
    monkeypatch.setattr(TokenStream, "logits", lambda self, ids: runs.append(len(ids)) or real(self, ids))
    count = []
    np.testing.assert_array_equal(source.rows(drawing, 2 * BATCH, lambda: count.append(1)), expected)
    assert len(runs) == 5 and len(count) == source.steps(drawing, 2 * BATCH) == 12
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(source.rows(drawing, 2 * BATCH, silent), expected)
    assert len(runs) == 10
    TextDrawer(source._model, ALL, "hash", tmp_path / "b").rows(drawing, 2 * BATCH, silent)
    assert len(runs) == 10
    TextDrawer(source._model, ALL, "another model", tmp_path / "b").rows(drawing, 1, silent)
    assert len(runs) == 15


def _tokenizer(path: Path) -> Path:
    ids = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, IDS - 3)}}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="w2"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(path))
    return path


def test_special_tokens(tmp_path):
    """The tokenizer's own come first; none begins a text; after an end-of-text token a new text begins."""
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"eos_token_id": [1, 7, 999]}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 8}))
    (tmp_path / "config.json").write_text("no json")
    vocabulary = read_vocabulary(IDS, _tokenizer(tmp_path / "tokenizer.json"), tmp_path)
    assert (vocabulary.before, vocabulary.ends) == ((0,), (1, 7, 8))
    assert vocabulary.first.tolist() == [i for i in range(2, IDS - 3) if i not in (7, 8)]
    rows = drawer(cached_model(tmp_path / "m.onnx"), tmp_path / "kept", vocabulary).rows(Drawing(40, 0), 16, silent)
    assert (rows[:, 0] == 0).all()
    starts = vocabulary.first[
        (np.stack([np.random.default_rng((0, i)).random(40) for i in range(16)]) * 33).astype(int)
    ]
    assert (rows[:, 1] == starts[:, 1]).all()
    ended = np.isin(rows[:, 1:-1], vocabulary.ends)
    assert ended.sum() > 20
    assert (rows[:, 2:][ended] == starts[:, 2:][ended]).all()

    alone = read_vocabulary(IDS, None, tmp_path / "nowhere")
    assert (alone.before, alone.ends, len(alone.first)) == ((), (), IDS)
    with pytest.raises(JaxqError, match="no token of text below 2"):
        read_vocabulary(2, tmp_path / "tokenizer.json", tmp_path)


def test_models_of_a_fixed_size(tmp_path):
    source = drawer(cached_model(tmp_path / "m.onnx", cache=False, fixed=(3, 10)), tmp_path / "kept")
    free = drawer(cached_model(tmp_path / "f.onnx", cache=False), tmp_path / "free")
    np.testing.assert_array_equal(source.rows(Drawing(10, 0), 4, silent), free.rows(Drawing(10, 0), 4, silent))
    with pytest.raises(JaxqError, match=r"samples of 10 tokens, and 12 are asked for: give calib\.length=10"):
        source.rows(Drawing(12, 0), 4, silent)
    ids, seconds = source.stand_in(Drawing(10, 0), 4)
    assert ids.shape == (4, 10) and seconds > 0


def test_no_text_from_nan_and_none_without_room(tmp_path):
    with pytest.raises(JaxqError, match="its logits are NaN or infinite"):
        draw_tokens(np.full((1, 4), np.nan, np.float32), np.zeros(1), 1.0)
    source = drawer(cached_model(tmp_path / "m.onnx"), tmp_path, Vocabulary((1, 2), np.arange(IDS), ()))
    with pytest.raises(JaxqError, match="3 tokens have no room for drawn text beside 2 special tokens"):
        source.rows(Drawing(3, 0), 1, silent)


def test_a_cache_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")
    source = drawer(cached_model(tmp_path / "m.onnx"), tmp_path / "file")
    with pytest.raises(JaxqError, match=r"cannot write to the cache .*file.*give another cache_dir"):
        source.rows(Drawing(4, 0), 1, silent)


def test_logits_of_a_run_without_a_cache_are_bounded(tmp_path, monkeypatch):
    source = drawer(cached_model(tmp_path / "m.onnx", cache=False), tmp_path / "a")
    expected = source.rows(Drawing(8, 0), 5, silent)
    monkeypatch.setattr(drawn_text, "_LOGIT_BYTES", 2 * 4 * 8 * IDS)
    runs = []
    real = TokenStream.logits
    monkeypatch.setattr(TokenStream, "logits", lambda self, ids: runs.append(len(ids)) or real(self, ids))
    small = TextDrawer(source._model, ALL, "hash", tmp_path / "b")
    np.testing.assert_array_equal(small.rows(Drawing(8, 0), 5, silent), expected)
    assert set(runs) == {1, 2}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (encoder, "no logits of the next token"),
        (lambda path: with_logits(path, causal=False), "no logits of the next token"),
    ],
)
def test_other_models_are_no_language_models(tmp_path, build, reason):
    model = open_language_model(build(tmp_path / "m.onnx"))
    assert isinstance(model, str) and reason in model


def test_causal_logits_are_a_language_model(tmp_path):
    model = open_language_model(with_logits(tmp_path / "m.onnx", causal=True))
    assert not isinstance(model, str) and model.vocabulary == IDS
