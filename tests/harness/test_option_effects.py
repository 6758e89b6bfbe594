"""Each option changes the result of some run, and is refused where it cannot change the result."""

from hashlib import sha256
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from jaxq.embedded import build_model
from jaxq.errors import JaxqError
from jaxq.harness import text_sources
from jaxq.harness.compose import compose_config
from jaxq.harness.config import option_names
from jaxq.harness.data import check_data, has_data, read_data
from jaxq.harness.drawn_text import DrawnText, asked_to_draw, draws_by_default
from jaxq.harness.make_job import make_job
from jaxq.harness.option_effects import EFFECTS, check_options, given_keys
from jaxq.harness.overrides import with_model
from jaxq.runtime.inputs import read_input_spec

ONNX, HF, TABLES = ["model.path=m.onnx"], ["model.id=a/b"], ["gather.axis=1"]
RTN = ["method=rtn_dq"]
NEITHER = ["calib.samples=0", "eval.samples=0"]
SAMPLES = ["calib.samples=4", "eval.samples=3"]
SMALL = ["calib.samples=4", "calib.length=8", "eval.samples=3", "eval.length=8"]
TEXTS, HELD_OUT = ["calib.text=[a.txt,b.txt]", *SMALL], ["eval.text=[c.txt,d.txt]", *SMALL]
DATASET, OTHER = ["calib.dataset=a/b", *SMALL], ["eval.dataset=c/d", *SMALL]

KEYS = {
    # Key: a run and a value that changes its result, then runs that refuse the option.
    "model.name": ([], "model.name=hf", []),
    "model.path": (ONNX, "model.path=n.onnx", [["model=embedded"], ["model=hf", *HF]]),
    "model.id": (HF, "model.id=c/d", [["model=embedded"], ["model=onnx", *ONNX]]),
    "model.dtype": (HF, "model.dtype=float16", [[], ONNX]),
    "method.name": ([], "method.name=gptq", []),
    "method.full_range": (["method=rtn_dq"], "method.full_range=true", [["dtype=uint4"], ["dtype=nvfp4"]]),
    "method.alpha_step": (["method=awq_lite"], "method.alpha_step=0.2", [["method=rtn_dq"], ["method=best"], []]),
    "method.search_columns": (["method=awq_gptq"], "method.search_columns=9", [["method=rtn"], ["method=gptq"]]),
    "method.min_clip_ratio": (
        ["method=awq_clip"],
        "method.min_clip_ratio=0.7",
        [["method=awq_lite"], ["method=awq_full", "method.block_scales=true"]],
    ),
    "method.clip_step": (["method=awq_full"], "method.clip_step=0.1", [["method=gptq"], ["method=nvfp4"]]),
    "method.block_scales": (["method=awq_lite"], "method.block_scales=true", [["method=best"], ["method=rtn_dq"]]),
    "method.damping": (["method=gptq"], "method.damping=0.1", [["method=rtn_dq"], ["method=awq_lite"], NEITHER]),
    "method.descent_passes": (["method=best"], "method.descent_passes=2", [["method=rtn_search"], ["form=qdq"]]),
    "method.ridge": ([], "method.ridge=9", [["method=gptq"]]),
    "method.shrinkage": (
        ["method=awq_lite", "method.block_scales=true"],
        "method.shrinkage=9",
        [["method=awq_lite"], ["method=rtn_dq"]],
    ),
    "method.bits_per_weight": ([], "method.bits_per_weight=5", []),
    "method.exclude": ([], "method.exclude=[a]", []),
    "dtype.name": ([], "dtype.name=int8", []),
    "dtype.default_block_size": ([], "dtype.default_block_size=64", [["block_size=32"], ["preset=deploy"]]),
    "form.name": ([], "form.name=column_major", []),
    "form.accuracy_level": (["form=matmulnbits"], "form.accuracy_level=1", [[], ["form=qdq"]]),
    "mixed.int8": ([], "mixed.int8=[a]", []),
    "mixed.block_size": (["mixed.int8=[a]"], "mixed.block_size=64", [[]]),
    "gather.axis": ([], "gather.axis=0", []),
    "gather.dtype": (TABLES, "gather.dtype=int8", [[]]),
    "gather.block_size": (
        TABLES,
        "gather.block_size=64",
        [[], ["preset=deploy", "gather.axis=null"], [*TABLES, "gather.dtype=nvfp4"]],
    ),
    "calib.tokens": (SAMPLES, "calib.tokens=t.npz", [NEITHER, [*RTN, "eval.samples=0"], [*RTN, "eval.text=c.txt"]]),
    "calib.text": (
        SMALL,
        "calib.text=a.txt",
        [["calib.samples=0"], RTN, ["method=rtn", *HELD_OUT], ["form=qdq"]],
    ),
    "calib.dataset": (SMALL, "calib.dataset=a/b", [["calib.samples=0"], RTN, ["method=nvfp4"]]),
    "calib.shares": (TEXTS, "calib.shares=[3,1]", [[], ["calib.text=a.txt"]]),
    "calib.source": (SMALL, "calib.source=self", [["calib.samples=0"], RTN]),
    "calib.subset": (DATASET, "calib.subset=x", [[], TEXTS]),
    "calib.split": (DATASET, "calib.split=x", [[], TEXTS]),
    "calib.column": (DATASET, "calib.column=x", [[], TEXTS]),
    "calib.tokenizer": (TEXTS, "calib.tokenizer=other.json", [[], ["calib.tokens=t.npz"]]),
    "calib.samples": (SMALL, "calib.samples=2", [["method=rtn_dq", *ONNX]]),
    "calib.length": (SMALL, "calib.length=6", [["calib.samples=0"], ["calib.tokens=t.npz"]]),
    "calib.batch_size": (SMALL, "calib.batch_size=2", [["calib.samples=0"]]),
    "calib.self_share": (TEXTS, "calib.self_share=0.5", [["calib.samples=0"], [*SMALL, *RTN]]),
    "eval.tokens": (SAMPLES, "eval.tokens=t.npz", [["eval.samples=0"]]),
    "eval.text": (SMALL, "eval.text=c.txt", [["eval.samples=0"]]),
    "eval.dataset": (SMALL, "eval.dataset=c/d", [["eval.samples=0"]]),
    "eval.shares": (HELD_OUT, "eval.shares=[9,1]", [[], ["eval.text=c.txt"]]),
    "eval.source": (SMALL, "eval.source=self", [["eval.samples=0"]]),
    "eval.subset": (OTHER, "eval.subset=x", [[]]),
    "eval.split": (OTHER, "eval.split=x", [[]]),
    "eval.column": (OTHER, "eval.column=x", [[], ["eval.text=c.txt"]]),
    "eval.tokenizer": (HELD_OUT, "eval.tokenizer=other.json", [[], TEXTS]),
    "eval.samples": (SMALL, "eval.samples=2", [["method=rtn_dq", *ONNX]]),
    "eval.length": (SMALL, "eval.length=6", [["eval.samples=0"], ["eval.tokens=t.npz"]]),
    "eval.batch_size": (SMALL, "eval.batch_size=2", [["eval.samples=0"]]),
    "eval.holdout_fraction": (TEXTS, "eval.holdout_fraction=0.5", [["eval.samples=0"]]),
    "block_size": ([], "block_size=64", [["method=nvfp4"], ["dtype=mxfp8"]]),
    "scale_dtype": ([], "scale_dtype=float16", [["dtype=nvfp4"]]),
    "dry_run": ([], "dry_run=true", []),
    "cache_dir": ([], "cache_dir=elsewhere", []),
    "window_gb": (["method=best"], "window_gb=0.5", [["method=rtn_dq"], NEITHER]),
    "external_data_above_mb": ([], "external_data_above_mb=1", []),
}


@pytest.fixture(scope="module")
def spec():
    return read_input_spec(build_model())


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Texts, and token ids; tokenizers and datasets that only tell what was asked of them."""
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        Path(f"{name}.txt").write_text(name * 900)
    rows = np.arange(200).reshape(25, 8)
    np.savez("t.npz", calib=rows[:12], eval=rows[12:])

    def encode(text, encoder, length, name):
        seed = int.from_bytes(sha256(f"{text} {encoder}".encode()).digest()[:4], "little")
        return np.random.default_rng(seed).integers(0, 2048, (12, length))

    monkeypatch.setattr(text_sources, "load_tokenizer", str)
    monkeypatch.setattr(text_sources, "token_rows", encode)
    monkeypatch.setattr(text_sources, "dataset_text", lambda dataset, tokens: repr(dataset))
    monkeypatch.setattr(text_sources, "find_tokenizer", lambda config, part, source: _tokenizer(config, part))


def _tokenizer(config, part):
    return (config.eval.tokenizer if part == "eval" else None) or config.calib.tokenizer or "beside"


class _Drawn:
    seconds, dry_run = 0.0, False

    def rows(self, part, samples, length):
        return np.random.default_rng(len(part) + 100).integers(0, 2048, (samples, length))


def outcome(overrides, spec):
    """The model, the job and the batches that overrides lead to."""
    config = compose_config(overrides)
    check_data(config)
    check_options(config, overrides, has_data(config) or draws_by_default(config))
    model, read = config.model, config.model.name == "embedded" and config.calib.samples <= 4
    source = {"onnx": "path", "hf": "id"}.get(model.name)
    named = (model.name, source and getattr(model, source), model.dtype if model.name == "hf" else None)
    job = make_job(config, Path("s"), Path("t"), True)
    drawn = cast(DrawnText, _Drawn()) if asked_to_draw(config) else None
    data = read_data(config, Path("s"), spec, drawn) if read else None
    batches = (
        [] if data is None else [{k: v.tolist() for k, v in b.feeds.items()} for b in (*data.calib, *data.held_out)]
    )
    return named, repr(job), job.form.name, repr(job.form.write), config.dry_run, batches


def refused(overrides, words):
    config = compose_config(overrides)
    with pytest.raises(JaxqError, match="changes nothing") as error:
        check_options(config, overrides, has_data(config) or draws_by_default(config))
    assert all(word in str(error.value) for word in words), error.value


def test_the_table_has_every_option_and_no_other():
    groups = {name.rpartition(".")[0] for name in option_names()}
    assert set(EFFECTS) == set(option_names()) - groups
    assert set(KEYS) == set(EFFECTS)


@pytest.mark.parametrize("key", EFFECTS)
def test_an_option_changes_the_result(key, spec):
    base, override, _ = KEYS[key]
    changed = [*[other for other in base if not other.startswith(f"{key}=")], override]
    assert given_keys([override]) == [key]
    assert outcome(changed, spec) != outcome(base, spec)


REFUSED = [(key, run) for key, (_, _, runs) in KEYS.items() for run in runs]


@pytest.mark.parametrize(("key", "run"), REFUSED, ids=[f"{key} {' '.join(run)}" for key, run in REFUSED])
def test_an_option_without_effect_is_refused(key, run):
    others = [other for other in run if not other.startswith(f"{key}=")]
    refused([*others, KEYS[key][1]], [f"{key} changes nothing", "leave it out", "; it is read with "])


def test_every_option_that_some_runs_do_not_read_has_such_a_run():
    assert {key for key, effect in EFFECTS.items() if effect.readers != "every run"} == {key for key, _ in REFUSED}


def test_the_sentence_has_the_value_that_decides():
    refused(
        ["method=rtn_dq", "method.alpha_step=0.2"], ["with method=rtn_dq", "method=awq_lite or awq_full or awq_gptq"]
    )
    refused(["method.alpha_step=0.2"], ["with method=auto, which is best here"])
    refused(["model=embedded", "model.path=x.onnx"], ["with model=embedded", "read with model=onnx"])


EVALUATED = {
    "a part of the text": ["calib.text=a.txt", "eval.holdout_fraction=0.2", "eval.length=256"],
    "a split of the dataset": ["calib.dataset=a/b", "eval.split=test"],
    "an array of the file": ["calib.tokens=t.npz"],
    "a budget": ["calib.text=a.txt", "method.bits_per_weight=5"],
}


@pytest.mark.parametrize("options", EVALUATED.values(), ids=EVALUATED)
def test_data_that_calibrates_nothing_is_taken_for_the_evaluation_or_a_budget(options):
    given = [*ONNX, "method=rtn_dq", *options]
    check_options(compose_config(given), given, True)


def test_data_without_effect_is_refused_with_what_to_do():
    refused(
        ["method=rtn_dq", "calib.text=a.txt"],
        ["leave it out, or the data (--data) that it stands for;", "method=rtn_dq", "method=best", "eval.text"],
    )
    refused(["method=rtn_dq", "calib.source=self"], ["method=rtn_dq: leave it out", "eval.source"])
    np.savez("alone.npz", calib=np.arange(8)[None])
    refused(
        [*ONNX, "method=rtn_dq", "calib.tokens=alone.npz"],
        ["leave it out, or the data (--data) that it stands for;", "an array eval in the file"],
    )


def test_a_sweep_may_give_data_and_blocks_to_all_of_its_runs():
    given = ["method=rtn_dq", "calib.text=a.txt", "dtype=nvfp4", "form=portable", "block_size=16"]
    check_options(compose_config(given), given, True, sweeps=True)


def test_options_of_presets_and_of_experiments_are_not_refused():
    config = compose_config(["preset=deploy", "dtype=int4", "gather.axis=null", "method=rtn_dq"])
    check_options(config, ["preset=deploy", "gather.axis=null", "method=rtn_dq"], True)


def test_model_path_and_model_id_choose_the_model():
    assert compose_config(["model.path=m.onnx"]).model.name == "onnx"
    assert compose_config(["model.id=a/b"]).model.name == "hf"
    assert with_model(["model.path=null"]) == ["model.path=null"]
    with pytest.raises(JaxqError, match="leave out one"):
        compose_config(["model.path=m.onnx", "model.id=a/b"])


def test_each_job_of_a_sweep_is_checked_by_itself(jaxq):
    small = ("calib.samples=2", "calib.length=16", "eval.samples=0")
    done = jaxq("-m", "method=rtn_dq,awq_lite", "method.alpha_step=0.5,1", *small)
    assert done.code == 2
    assert done.err.count("method.alpha_step changes nothing with method=rtn_dq: leave it out") == 1
    assert done.err.endswith("(runs 0, 1)\n")
    assert len(list(Path().glob("outputs/sweeps/*/*/*/model.onnx"))) == 2
