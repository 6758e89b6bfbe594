"""From texts and datasets to samples: special tokens, folders, the model's own tokenizer, held-out shares."""

import json
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxq import embedded
from jaxq.data.text_datasets import TextDataset, dataset_text
from jaxq.data.texts import TEXT_FILES, load_tokenizer, read_text, special_tokens, token_rows
from jaxq.errors import JaxqError
from tests.support.encoders import IDS, encoder

WORDS = [f"w{i}" for i in range(IDS - 5)]


def _words(template: str | None) -> Tokenizer:
    """A tokenizer of words; a template such as "[CLS] $A [SEP]" puts special tokens around a text."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "<s>"]
    ids = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(special)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=template, special_tokens=[(s, ids[s]) for s in special if s in template]
        )
    return tokenizer


def _text(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


@pytest.mark.parametrize(
    ("template", "ends"),
    [(None, ([], [])), ("<s> $A", ([4], [])), ("[CLS] $A [SEP]", ([1], [2])), ("$A [SEP]", ([], [2]))],
)
def test_special_tokens_stand_around_every_sample(template, ends):
    encoder = _words(template)
    assert special_tokens(encoder) == ends
    rows = token_rows(_text(100), encoder, 10, "text")
    before, after = ends
    inner = 10 - len(before) - len(after)
    assert rows.shape == (100 // inner, 10)
    for row in rows:
        assert row[: len(before)].tolist() == before
        assert row[len(row) - len(after) :].tolist() == after
    plain = encoder.encode(_text(100), add_special_tokens=False).ids
    assert rows[:, len(before) : 10 - len(after)].ravel().tolist() == plain[: rows.shape[0] * inner]


def test_samples_of_special_tokens_alone_are_refused():
    with pytest.raises(JaxqError, match="room for special tokens only"):
        token_rows(_text(100), _words("[CLS] $A [SEP]"), 2, "text")


def test_a_chat_template_is_not_applied(tmp_path):
    _words("<s> $A").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "[SEP] {{ messages }}"}))
    (tmp_path / "text.txt").write_text(_text(40))
    rows = token_rows(read_text(tmp_path / "text.txt"), load_tokenizer(tmp_path / "tokenizer.json"), 11, "text")
    assert rows.shape == (4, 11)
    assert not (rows == 2).any()


def test_a_folder_is_read_in_order_and_one_without_text_is_refused(tmp_path):
    with pytest.raises(JaxqError, match=r"has no text: give a folder with files that end in \.txt"):
        read_text(tmp_path)
    (tmp_path / "deep").mkdir()
    for i, suffix in enumerate(TEXT_FILES):
        (tmp_path / "deep" / f"{i}{suffix.upper() if i else suffix}").write_text(f"part {i}")
    (tmp_path / "image.png").write_bytes(b"\xff\xfe")
    assert read_text(tmp_path) == "\n\n".join(f"part {i}" for i in range(len(TEXT_FILES)))
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe")
    with pytest.raises(JaxqError, match=r"bad\.md' cannot be read as UTF-8"):
        read_text(tmp_path)


@pytest.fixture
def model(tmp_path):
    path = encoder(tmp_path / "model.onnx")
    _words("[CLS] $A [SEP]").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "calib.txt").write_text(_text(900))
    (tmp_path / "eval.txt").write_text(_text(300, seed=1))
    return path


SMALL = ("block_size=16", "calib.samples=6", "calib.length=12", "eval.samples=5", "eval.length=12")


def test_the_tokenizer_beside_the_model_is_taken(jaxq, model):
    folder = model.parent
    texts = (f"calib.text={folder}/calib.txt", f"eval.text={folder}/eval.txt")
    done = jaxq("model=onnx", f"model.path={model}", *texts, *SMALL)
    assert done.code == 0, done.err
    assert done.report["method"] == "best"
    assert done.report["calibration"]["tokens"] == 6 * 12
    assert done.report["accuracy"]["samples"] == 5
    (folder / "tokenizer.json").unlink()
    again = jaxq("model=onnx", f"model.path={model}", *texts, *SMALL)
    assert again.code == 2
    assert "calib.text is given without a tokenizer" in again.err
    assert "there is no tokenizer.json in" in again.err


def test_nothing_is_judged_on_calibration_text(jaxq, model):
    done = jaxq("model=onnx", f"model.path={model}", f"calib.text={model.parent}/calib.txt", *SMALL[:3])
    assert done.code == 0, done.err
    assert "no held-out data was given" in done.report["accuracy"]["not_measured"]


def test_a_share_of_the_text_is_held_out(jaxq, model, monkeypatch):
    seen = {}
    from jaxq.harness import command as run

    real = run.evaluate
    monkeypatch.setattr(run, "quantize_model", _record(seen, "calib", run.quantize_model, 1))
    monkeypatch.setattr(run, "evaluate", _record(seen, "eval", real, 2))
    text = f"calib.text={model.parent}/calib.txt"
    done = jaxq(
        "model=onnx",
        f"model.path={model}",
        text,
        *SMALL,
        "calib.samples=1000",
        "eval.samples=1000",
        "eval.holdout_fraction=0.25",
    )
    assert done.code == 0, done.err
    calib, held_out = (np.concatenate([b.feeds["input_ids"] for b in seen[part]]) for part in ("calib", "eval"))
    together = np.concatenate([calib, held_out])
    tokenizer = load_tokenizer(model.parent / "tokenizer.json")
    all_rows = token_rows(read_text(model.parent / "calib.txt"), tokenizer, 12, "")
    np.testing.assert_array_equal(together, all_rows)
    assert len(held_out) == int(np.ceil(0.25 * len(all_rows)))


def _record(seen, name, function, position):
    def wrapped(*arguments):
        seen[name] = arguments[position]
        return function(*arguments)

    return wrapped


def test_the_embedded_model_reads_text_with_its_own_tokenizer(jaxq, tmp_path):
    (tmp_path / "c.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    small = ("calib.samples=2", "calib.length=16", "eval.samples=0")
    done = jaxq(f"calib.text={tmp_path}/c.txt", "method=rtn_search", *small)
    assert done.code == 0, done.err
    assert embedded.load_tokenizer().get_vocab_size() == 2048


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(JaxqError, match=r"dataset 'd' \(raw\), split 'test' needs the library datasets.*cpu,datasets"):
        dataset_text(TextDataset("d", "test", "raw"), 10)


@pytest.mark.slow
class TestDatasets:
    """Local datasets of every kind; tests do not reach the hub."""

    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))

    @pytest.mark.parametrize("kind", ["parquet", "json", "csv", "text", "saved", "file"])
    def test_kinds_of_datasets(self, tmp_path, kind):
        import datasets  # pyright: ignore[reportMissingImports]

        rows = [_text(6, seed=i) for i in range(30)]
        folder = tmp_path / "d"
        folder.mkdir()
        table = datasets.Dataset.from_dict({"text": rows})
        match kind:
            case "parquet":
                table.to_parquet(folder / "train.parquet")
            case "json":
                table.to_json(folder / "train.jsonl")
            case "csv":
                table.to_csv(folder / "train.csv")
            case "text":
                (folder / "train.txt").write_text("\n".join(rows))
            case "saved":
                datasets.DatasetDict({"train": table}).save_to_disk(folder / "s")
                folder = folder / "s"
            case "file":
                table.to_json(folder / "x.jsonl")
                folder = folder / "x.jsonl"
        assert dataset_text(TextDataset(str(folder), "train"), 1000) == "\n\n".join(rows)
        few = dataset_text(TextDataset(str(folder), "train"), 2)
        assert few == "\n\n".join(rows[: few.count("\n\n") + 1]) and len(few) < 80

    def test_columns_and_splits(self, tmp_path):
        import datasets  # pyright: ignore[reportMissingImports]

        datasets.Dataset.from_dict({"a": ["x"], "b": ["y"], "n": [1]}).to_json(tmp_path / "train.jsonl")
        where = str(tmp_path)
        assert dataset_text(TextDataset(where, "train", column="b"), 5) == "y"
        for source, words in (
            (TextDataset(where, "train"), "columns a, b, n: give the one with the text"),
            (TextDataset(where, "train", column="c"), "no column 'c': choose from a, b, n"),
            (TextDataset(where, "train", column="n"), "no text in column 'n': choose a or b"),
            (TextDataset(where, "test"), "cannot be read"),
            (TextDataset("nobody/nothing", "train"), "'nobody/nothing', split 'train' cannot be read"),
        ):
            with pytest.raises(JaxqError, match=words):
                dataset_text(source, 5)

    def test_a_run_on_two_splits(self, jaxq, model, tmp_path):
        import datasets  # pyright: ignore[reportMissingImports]

        folder = tmp_path / "d"
        folder.mkdir()
        for i, split in enumerate(("train", "test")):
            rows = [_text(30, seed=100 * i + j) for j in range(40)]
            datasets.Dataset.from_dict({"words": rows}).to_parquet(folder / f"{split}.parquet")
        done = jaxq("model=onnx", f"model.path={model}", f"calib.dataset={folder}", "eval.split=test", *SMALL)
        assert done.code == 0, done.err
        assert done.report["calibration"]["tokens"] == 6 * 12
        assert done.report["accuracy"]["samples"] == 5
