"""Which ONNX files a folder stands for, and how a folder without one is refused."""

import json
from pathlib import Path

import pytest

from jaxq.errors import JaxqError
from jaxq.files.model_folder import find_model, is_huggingface, list_models

GENAI = {"model": {"vision": {"filename": "vision.onnx"}, "decoder": {"filename": "text.onnx"}, "vocab_size": 8}}
PIPELINE = {"model": {"decoder": {"pipeline": [{"a": {"filename": "a.onnx"}}, {"b": {"filename": "b.onnx"}}]}}}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (["decoder.onnx", "tokenizer.json"], "decoder.onnx"),
        (["model.onnx", "model_fp16.onnx"], "model.onnx"),
        (["onnx/model.onnx", "onnx/model_q4.onnx", "config.json", "model.safetensors"], "onnx/model.onnx"),
        (["model.onnx", ".hidden.onnx"], "model.onnx"),
    ],
)
def test_the_model_of_a_folder(tmp_path, names, model):
    assert find_model(fill(tmp_path, *names)) == tmp_path / model


def test_a_file_stands_for_itself(tmp_path):
    path = fill(tmp_path, "any.bin") / "any.bin"
    assert find_model(path) == path
    assert list_models(path) == [path]


@pytest.mark.parametrize(("config", "files"), [(GENAI, ["text.onnx", "vision.onnx"]), (PIPELINE, ["a.onnx", "b.onnx"])])
def test_a_configuration_of_genai_names_the_models_and_the_decoder_is_first(tmp_path, config, files):
    fill(tmp_path, *files, "other.onnx")
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    assert list_models(tmp_path) == [tmp_path / name for name in files]
    assert find_model(tmp_path) == tmp_path / files[0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ["has no model", "config.json"]),
        (["texts/a.txt"], ["has no model"]),
        (["config.json", "model.safetensors"], ["is a Hugging Face model", "model=hf", "jaxq quantize"]),
        (["decoder_model.onnx", "encoder_model.onnx"], ["several models", "decoder_model.onnx, encoder_model.onnx"]),
    ],
)
def test_a_folder_without_one_model_is_refused(tmp_path, names, words):
    with pytest.raises(JaxqError) as caught:
        find_model(fill(tmp_path, *names))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"model": 1}', "cannot be read"),
        (json.dumps(GENAI), "names 'text.onnx', which does not exist"),
    ],
)
def test_a_configuration_that_is_damaged_is_named(tmp_path, text, words):
    (tmp_path / "genai_config.json").write_text(text)
    with pytest.raises(JaxqError, match=words):
        find_model(tmp_path)


def test_what_does_not_exist_is_refused(tmp_path):
    with pytest.raises(JaxqError, match=r"'.*nowhere' does not exist"):
        find_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["config.json", "model.safetensors"], True), (["config.json"], False), (["model.safetensors"], False)],
)
def test_a_folder_of_hugging_face_has_a_configuration_and_weights(tmp_path, names, expected):
    assert is_huggingface(fill(tmp_path, *names)) == expected
