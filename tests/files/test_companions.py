"""Files beside a model: which belong to it, what the copy's folder holds, what is left and said."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxq.errors import JaxqError
from jaxq.files.companions import copy_companions, find_companions
from jaxq.harness.config import CalibConfig, Config, EvalConfig, ModelConfig
from jaxq.harness.data import read_data
from jaxq.runtime.inputs import InputSpec, ModelInput
from tests.support.models import mlp

CONFIG = {"model": {"decoder": {"filename": "text.onnx", "head_size": 16}, "type": "llama"}, "search": {"top_p": 1e-05}}


def written(folder: Path, name: str = "text.onnx", external: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(mlp(), folder / name, save_as_external_data=external, location=f"{name}_data", size_threshold=0)
    return folder / name


def fill(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def listed(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def copied(source: Path, out: Path) -> tuple[set[str], str]:
    out.mkdir(exist_ok=True)
    notes = copy_companions(find_companions(source, "model.onnx"), out)
    return listed(out), "; ".join(notes)


def test_a_models_folder_is_copied_but_for_models_and_data(tmp_path):
    source = written(tmp_path / "m")
    written(tmp_path / "m", "other.onnx")
    fill(
        tmp_path / "m",
        {"tokenizer.json": "{}", "config.json": "{}", "LICENSE": "l", "vocab.txt": "v", "report.json": "old"},
    )
    fill(tmp_path / "m", {"weights.safetensors": "w", ".hidden": "h", "additional_chat_templates/tool.jinja": "t"})
    fill(tmp_path / "m", {"outputs/a.json": "o", "generation_config.json": "g"})
    np.savez(tmp_path / "m" / "tokens.npz", calib=np.ones((2, 2)))
    names, notes = copied(source, tmp_path / "out")
    own = {"tokenizer.json", "config.json", "LICENSE", "vocab.txt", "generation_config.json"}
    assert names == own | {"additional_chat_templates/tool.jinja"}
    assert "copied beside the model: LICENSE" in notes
    for name in ("other.onnx", "other.onnx_data", "weights.safetensors", "outputs/", "tokens.npz"):
        assert name in notes
    assert ".hidden" not in notes and "text.onnx" not in notes and "report.json" not in notes


@pytest.mark.parametrize("files", [{}, {"notes.txt": "n"}, {"config.json": '{"theme": "dark"}'}, {"config.json": "["}])
def test_of_any_other_folder_nothing_is_taken(files, tmp_path):
    source = written(tmp_path / "downloads")
    fill(tmp_path / "downloads", {"invoice.json": "{}"} | files)
    assert copied(source, tmp_path / "out") == (set(), "")


@pytest.mark.parametrize("mark", ["tokenizer.json", "genai_config.json", "config.json", "tokenizer.model"])
def test_what_makes_a_models_folder(mark, tmp_path):
    source = written(tmp_path / "m")
    fill(tmp_path / "m", {mark: json.dumps(CONFIG | {"model_type": "llama"}), "added_tokens.json": "{}"})
    assert "added_tokens.json" in copied(source, tmp_path / "out")[0]


def test_a_folder_named_onnx_belongs_to_the_one_above(tmp_path):
    source = written(tmp_path / "m" / "onnx")
    fill(tmp_path / "m", {"tokenizer.json": "{}", "config.json": "{}"})
    names, notes = copied(source, tmp_path / "out")
    assert names == {"tokenizer.json", "config.json"}
    assert "not copied" not in notes


@pytest.mark.parametrize("given", ["text.onnx", "../onnx/text.onnx"])
def test_a_folder_named_onnx_may_be_the_current_one(given, tmp_path, monkeypatch):
    written(tmp_path / "m" / "onnx")
    fill(tmp_path / "m", {"tokenizer.json": "{}", "config.json": "{}"})
    monkeypatch.chdir(tmp_path / "m" / "onnx")
    names, notes = copied(Path(given), tmp_path / "out")
    assert names == {"tokenizer.json", "config.json"}
    assert "not copied" not in notes


def test_a_model_of_links_keeps_what_lies_beside_the_links(tmp_path):
    source = written(tmp_path / "m" / "onnx")
    fill(tmp_path / "m", {"tokenizer.json": "{}", "onnx/config.json": "{}"})
    (tmp_path / "blobs").mkdir()
    for i, file in enumerate(sorted(p for p in (tmp_path / "m").rglob("*") if p.is_file())):
        file.symlink_to(file.replace(tmp_path / "blobs" / f"{i}f3a"))
    names, notes = copied(source, tmp_path / "out")
    assert names == {"tokenizer.json"}
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    assert "not copied" not in notes


@pytest.mark.parametrize("given", ["text.onnx", "../onnx/text.onnx"])
def test_the_tokenizer_above_a_folder_named_onnx_is_found(given, tmp_path, monkeypatch):
    written(tmp_path / "m" / "onnx")
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "m" / "tokenizer.json"))
    fill(tmp_path, {"text.txt": "a b b a " * 50})
    monkeypatch.chdir(tmp_path / "m" / "onnx")
    calib = CalibConfig(samples=2, length=4, batch_size=1, text=str(tmp_path / "text.txt"))
    config = Config(model=ModelConfig(name="onnx"), calib=calib, eval=EvalConfig(samples=0, batch_size=1))
    spec = InputSpec((ModelInput("input_ids", np.dtype(np.int64), (None, None)),), 3)
    (batch, *_) = read_data(config, Path(given), spec).calib
    np.testing.assert_array_equal(np.asarray(batch.feeds["input_ids"])[0], [0, 1, 1, 0])


def test_the_configuration_names_the_copy_and_is_otherwise_the_same(tmp_path):
    source = written(tmp_path / "m")
    text = json.dumps(CONFIG, indent=2)
    fill(tmp_path / "m", {"genai_config.json": text})
    copied(source, tmp_path / "out")
    after = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert after["model"]["decoder"].pop("filename") == "model.onnx"
    assert after == {"model": {"decoder": {"head_size": 16}, "type": "llama"}, "search": {"top_p": 1e-05}}
    assert list(after) == list(CONFIG)
    assert (tmp_path / "m" / "genai_config.json").read_text() == text


def test_a_configuration_that_names_the_copy_already_keeps_its_bytes(tmp_path):
    source = written(tmp_path / "m", "model.onnx")
    text = json.dumps(CONFIG).replace("text.onnx", "model.onnx") + "\n\n"
    fill(tmp_path / "m", {"genai_config.json": text})
    copied(source, tmp_path / "out")
    assert (tmp_path / "out" / "genai_config.json").read_text() == text


def test_further_models_that_the_configuration_names_come_with_their_data(tmp_path):
    source = written(tmp_path / "m")
    written(tmp_path / "m", "vision.onnx")
    written(tmp_path / "m" / "parts", "embedding.onnx")
    written(tmp_path / "m", "unused.onnx", external=False)
    parts = {"vision": {"filename": "vision.onnx"}, "embedding": {"filename": "parts/embedding.onnx"}}
    config = {"model": {**CONFIG["model"], **parts, "custom": {"filename": "../outside.json"}}}
    fill(tmp_path, {"outside.json": "never"})
    fill(tmp_path / "m", {"genai_config.json": json.dumps(config)})
    names, notes = copied(source, tmp_path / "out")
    parts_found = {"vision.onnx", "vision.onnx_data", "parts/embedding.onnx", "parts/embedding.onnx_data"}
    assert names == parts_found | {"genai_config.json"}
    assert "not copied from the model's folder: unused.onnx" in notes
    onnx.checker.check_model(str(tmp_path / "out" / "parts" / "embedding.onnx"))


def test_a_configuration_for_another_model_is_said(tmp_path):
    source = written(tmp_path / "m", "variant.onnx")
    written(tmp_path / "m", "text.onnx")
    fill(tmp_path / "m", {"genai_config.json": json.dumps(CONFIG)})
    _, notes = copied(source, tmp_path / "out")
    assert "genai_config.json names 'text.onnx' and not 'variant.onnx': its copy names 'model.onnx'" in notes
    assert (
        json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["decoder"]["filename"] == "model.onnx"
    )


def test_a_name_that_another_model_has_is_said(tmp_path):
    source = written(tmp_path / "m", "vision.onnx")
    parts = {"decoder": {"filename": "model.onnx"}, "vision": {"filename": "vision.onnx"}}
    fill(tmp_path / "m", {"genai_config.json": json.dumps({"model": parts})})
    assert "'model.onnx' as another of its models" in copied(source, tmp_path / "out")[1]


def test_files_that_lie_there_already_are_kept(tmp_path):
    source = written(tmp_path / "m")
    fill(tmp_path / "m", {"tokenizer.json": "{}", "config.json": "{}"})
    fill(tmp_path / "out", {"config.json": "mine"})
    _, notes = copied(source, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == "mine"
    assert "had other files of these names, which were kept: config.json" in notes
    assert "kept" in copied(source, tmp_path / "out")[1]  # again: the tokenizer is the same file, that one is not


def test_the_models_own_folder_as_the_output(tmp_path):
    source = written(tmp_path / "m")
    fill(tmp_path / "m", {"genai_config.json": json.dumps(CONFIG)})
    before = listed(tmp_path / "m")
    _, notes = copied(source, tmp_path / "m")
    assert listed(tmp_path / "m") == before
    assert json.loads((tmp_path / "m" / "genai_config.json").read_text()) == CONFIG
    assert "kept: genai_config.json" in notes


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_broken_configuration_is_one_sentence_before_any_work(text, tmp_path):
    source = written(tmp_path / "m")
    fill(tmp_path / "m", {"genai_config.json": text})
    with pytest.raises(JaxqError, match=r"genai_config.json"):
        find_companions(source, "model.onnx")
