"""Words of a command line become overrides whose values Hydra reads as they were meant."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import example, given
from hypothesis import strategies as st

from jaxq.errors import JaxqError
from jaxq.harness.config import conf_dir, register
from jaxq.harness.overrides import (
    data_overrides,
    held_out_overrides,
    list_of_patterns,
    model_overrides,
    output_overrides,
    plain_settings,
    quoted,
    written,
)
from jaxq.harness.quantize_command import quantize_overrides

register()
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12)
PIECES = st.lists(st.sampled_from([*"\\'\"${}[](),=:#%~ aü/", "${", "\\${", "1e3"]), max_size=8).map("".join)


def composed(*overrides: str):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))


@given(NAMES | PIECES.filter(bool))
@example("a ü, [b]='c'\"d${x}\\")
@example("1e3")
@example("null")
@example("\\${x}'")
def test_any_path_is_read_as_it_is(text):
    config = composed(f"calib.text={quoted(text)}", f"eval.text={written(text)}")
    assert (config.calib.text, config.eval.text) == (text, text)


def test_plain_paths_have_no_quotes():
    assert written("a/model-1.onnx") == "a/model-1.onnx"
    assert written("1e3") == "'1e3'"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("method.exclude=lm_head", ["lm_head"]),
        ("method.exclude=*lm_head*,*router*", ["*lm_head*", "*router*"]),
        ("method.exclude='a b'", ["a b"]),
        ("method.exclude=block.[0-9]*", ["block.[0-9]*"]),
        ("method.exclude=[a,b]", ["a", "b"]),
        ("method.exclude=[]", []),
    ],
)
def test_a_single_pattern_is_a_list_of_one(setting, expected):
    assert list(composed(list_of_patterns(setting)).method.exclude) == expected


@pytest.mark.parametrize("setting", ["block_size=32", "method.exclude=", "method.exclude=null", "mixed.int8=${x}"])
def test_other_overrides_stay(setting):
    assert list_of_patterns(setting) == setting


def test_paths_among_the_overrides_are_quoted_where_they_need_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("[a]").mkdir()
    settings = ["eval.text=held, out.txt", "calib.text=[a]", "cache_dir=null", "eval.dataset='x'", "dtype=int8"]
    assert plain_settings(settings) == ["eval.text='held, out.txt'", "calib.text='[a]'", *settings[2:]]
    assert plain_settings(["calib.text=[a/,b/]"]) == ["calib.text=[a/,b/]"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with models and data, in which the process is."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "model.onnx", "a=b.onnx", "genai/model.onnx", "hf/config.json", "hf/model.safetensors", "both/config.json",
        "both/model.safetensors", "both/onnx/model.onnx", "texts/a.md", "rows/train.parquet", "empty/x", "words",
        "t.npz", "data.jsonl",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("model.onnx", ["model=onnx", "model.path=model.onnx"]),
        ("a=b.onnx", ["model=onnx", "model.path='a=b.onnx'"]),
        ("genai", ["model=onnx", "model.path=genai/model.onnx"]),
        ("genai/", ["model=onnx", "model.path=genai/model.onnx"]),
        ("both", ["model=onnx", "model.path=both/onnx/model.onnx"]),
        ("hf", ["model=hf", "model.id=hf"]),
        ("owner/name-1.7B", ["model=hf", "model.id=owner/name-1.7B"]),
        ("gpt2", ["model=hf", "model.id=gpt2"]),
    ],
)
def test_the_kind_of_a_model(here, model, expected):
    assert model_overrides(model) == expected


@pytest.mark.parametrize("model", ["nowhere.onnx", "genai/nowhere", "/nowhere/x", "a/b/c", "empty"])
def test_what_is_no_model_is_refused(here, model):
    with pytest.raises(JaxqError, match=repr(model).strip("'")):
        model_overrides(model)


HELD_OUT = ["eval.holdout_fraction=0.2", "eval.length=${calib.length}"]


@pytest.mark.parametrize(
    ("data", "settings", "expected"),
    [
        (None, [], []),
        ("t.npz", [], ["calib.tokens=t.npz"]),
        ("texts", [], ["calib.text=texts", *HELD_OUT]),
        ("words", [], ["calib.text=words", *HELD_OUT]),
        ("rows", [], ["calib.dataset=rows", *HELD_OUT]),
        ("data.jsonl", [], ["calib.dataset=data.jsonl", *HELD_OUT]),
        ("owner/name", [], ["calib.dataset=owner/name", *HELD_OUT]),
        ("texts", ["eval.text=other.txt"], ["calib.text=texts"]),
        ("texts", ["eval.holdout_fraction=0.5"], ["calib.text=texts"]),
        ("texts", ["eval.samples=0"], ["calib.text=texts"]),
        ("texts", ["calib.length=64", "eval.length=32"], ["calib.text=texts", HELD_OUT[0]]),
    ],
)
def test_the_kind_of_data(here, data, settings, expected):
    assert data_overrides(data, settings) == expected


@pytest.mark.parametrize("data", ["nowhere.txt", "nowhere.npz", "texts/nowhere", "nowhere.parquet", "/nowhere"])
def test_data_that_is_not_there_is_refused(here, data):
    with pytest.raises(JaxqError, match="does not exist"):
        data_overrides(data, [])


def test_the_output_is_a_folder(here):
    assert output_overrides(None, "model.onnx") == []
    assert output_overrides("out", "model.onnx") == ["hydra.run.dir=out"]
    assert output_overrides("a b, c=d", "model.onnx") == ["hydra.run.dir='a b, c=d'"]
    assert output_overrides(".", "genai") == ["hydra.run.dir=."]


@pytest.mark.parametrize(
    ("output", "model", "words"),
    [
        ("out.onnx", "model.onnx", "-o 'out'"),
        ("words", "model.onnx", "is a file"),
        (".", "model.onnx", "own folder"),
        ("genai", "genai/", "own folder"),
        ("${x}", "model.onnx", "has no"),
    ],
)
def test_an_output_that_cannot_be_is_refused(here, output, model, words):
    with pytest.raises(JaxqError, match=words):
        output_overrides(output, model)


def test_a_command_composes_the_configuration_of_a_run(here):
    overrides = quantize_overrides("genai", ["method=gptq", "method.exclude=x"], "out", "texts", "deploy")
    config = composed(*(override for override in overrides if not override.startswith("hydra.")))
    assert (config.model.name, config.model.path, config.form.name) == ("onnx", "genai/model.onnx", "matmulnbits")
    assert (config.method.name, list(config.method.exclude)) == ("gptq", ["x"])
    assert (config.eval.holdout_fraction, config.eval.length) == (0.2, 256)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("method=best", ["dtype=int8"], "jaxq quantize MODEL method=best dtype=int8"),
        ("model.onnx", ["out.onnx"], "jaxq quantize model.onnx -o out"),
        ("model.onnx", ["best"], "'best' is not written as key=value"),
        ("model.onnx", ["output=x"], "hydra.run.dir=x"),
    ],
)
def test_words_that_are_no_overrides_are_refused(here, model, settings, words):
    with pytest.raises(JaxqError, match=words):
        quantize_overrides(model, settings, None, None, "deploy")


def test_a_preset_that_is_not_there_is_refused(here):
    with pytest.raises(JaxqError, match=r"no preset 'small': choose one of .*deploy"):
        quantize_overrides("model.onnx", [], None, None, "small")
    assert "preset=deploy" not in quantize_overrides("model.onnx", ["preset=modelopt"], None, None, "deploy")


def test_missing_data_are_named_without_a_flag(tmp_path: Path) -> None:
    """Python has no flag ``--data``: the sentence suits both doors."""
    with pytest.raises(JaxqError, match=r"^data '.*nowhere.txt' does not exist"):
        held_out_overrides(str(tmp_path / "nowhere.txt"))
