"""Every configuration that conf/ can express composes into the schema."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from jaxq.errors import JaxqError
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import DTYPES
from jaxq.forms.registry import FORMS
from jaxq.harness.config import Config, conf_dir, flat_keys, option_names, register
from jaxq.harness.make_job import make_job
from jaxq.methods.registry import METHODS
from jaxq.pipeline.job import Budget, Job

register()


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _compose(*overrides: str) -> Config:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))  # pyright: ignore[reportReturnType]


def job(config: Config, has_data: bool) -> Job:
    return make_job(config, Path("source.onnx"), Path("target.onnx"), has_data)


@pytest.mark.parametrize("model", _options("model"))
@pytest.mark.parametrize("method", _options("method"))
def test_every_model_with_every_method(model, method):
    config = _compose(f"model={model}", f"method={method}")
    assert config.method.name == method
    assert config.dtype.name == ("nvfp4" if method == "nvfp4" else "int4")
    assert config.block_size == (16 if method == "nvfp4" else 128)
    assert config.form.name == {"rtn": "qdq", "nvfp4": "portable"}.get(method, "dq")
    assert list(config.method.exclude) == ["*lm_head*"]


def test_the_groups_have_every_name_and_no_other():
    assert set(_options("method")) == {*METHODS, "auto"}
    assert set(_options("dtype")) == set(DTYPES)
    assert set(_options("form")) == set(FORMS)


@cache
def _rounding(form: str, dtype: str) -> Config:
    """Composed once for all block sizes: that is what takes the time."""
    return _compose("method=rtn_dq", f"form={form}", f"dtype={dtype}")


HELD = [(form, dtype, block) for form in FORMS for dtype, sizes in FORMS[form].block_sizes.items() for block in sizes]


@pytest.mark.parametrize(("form", "dtype", "block_size"), HELD)
def test_every_form_takes_what_it_holds(form, dtype, block_size):
    config = deepcopy(_rounding(form, dtype))
    config.block_size = block_size
    fmt = job(config, has_data=False).method.fmt
    assert (fmt.dtype, fmt.block_size) == (dtype, block_size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_a_form_and_a_block_size_of_its_own(dtype):
    assert job(_compose(f"dtype={dtype}"), has_data=True).method.fmt.dtype == dtype


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_no_form_holds_is_refused_with_what_it_holds(form, dtype):
    if dtype in FORMS[form].block_sizes:
        return
    with pytest.raises(
        JaxqError, match=rf"^form '{form}' does not support {dtype}: it supports .*{dtype} goes with form="
    ):
        job(_rounding(form, dtype), has_data=False)


def test_the_command_line_wins_over_what_a_group_brings():
    assert _compose("dtype=nvfp4").form.name == "portable"
    assert _compose("dtype=nvfp4", "form=nvfp4_standard").form.name == "nvfp4_standard"
    assert _compose("method=rtn", "dtype=mxfp8").block_size == 32
    assert _compose("block_size=64").block_size == 64


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "float32"),
        (["scale_dtype=float16"], "float16"),
        (["scale_dtype=float8"], FLOAT8),
        (["method.bits_per_weight=4.5"], FLOAT8),
        (["method.bits_per_weight=4.5", "scale_dtype=float32"], "float32"),
        (["method.bits_per_weight=4.5", "form=trt"], "float32"),
    ],
)
def test_scales_are_narrow_where_asked_for_and_under_a_budget(overrides, expected):
    made = job(_compose("mixed.int8=[a]", "gather.axis=0", *overrides), has_data=True)
    assert made.gather is not None
    for fmt in (made.method.fmt, made.gather.fmt):
        assert isinstance(fmt, IntegerFormat) and fmt.scale_dtype == expected
    (rule,) = made.rules
    assert isinstance(rule.fmt, IntegerFormat)
    assert rule.fmt.scale_dtype == ("float16" if expected == FLOAT8 else expected)  # of 8 bits


@pytest.mark.parametrize(
    ("overrides", "full_range", "scale_dtype"),
    [
        ([], True, FLOAT8),
        (["dtype=uint4"], True, FLOAT8),
        (["dtype=int8"], True, FLOAT8),
        (["dtype=uint4", "method.full_range=false", "scale_dtype=float16"], False, "float16"),
        (["form=trt"], False, "float32"),
        (["method=rtn_dq", "dtype=uint4"], False, FLOAT8),
    ],
)
def test_a_budget_chooses_among_integers_as_asked_for(overrides, full_range, scale_dtype):
    """Whatever the format of weights without a choice."""
    made = job(_compose("method.bits_per_weight=4.5", *overrides), has_data=True)
    assert made.budget == Budget(4.5, full_range, scale_dtype)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=awq_lite"], True),
        (["method=rtn_dq"], False),
        (["method=awq_lite", "form=trt"], False),
        (["method=rtn_dq", "method.full_range=true"], True),
        (["method=awq_lite", "method.full_range=false"], False),
        (["method=awq_lite", "dtype=uint4"], False),
    ],
)
def test_full_range_scales_are_for_searches_and_forms_that_take_them(overrides, expected):
    fmt = job(_compose(*overrides), has_data=True).method.fmt
    assert isinstance(fmt, IntegerFormat) and fmt.full_range == expected


def test_mixed_formats_and_tables():
    made = job(_compose("mixed.int8=[*v_proj*]", "gather.axis=-1", "gather.dtype=int8"), has_data=True)
    (rule,) = made.rules
    assert rule.patterns == ("*v_proj*",)
    assert (rule.fmt.dtype, rule.fmt.block_size) == ("int8", -1)
    assert made.gather is not None
    assert (made.gather.positive_axis, made.gather.fmt.dtype, made.gather.fmt.block_size) == (1, "int8", 32)
    blocked = job(_compose("mixed.int8=[*v_proj*]", "form=matmulnbits", "block_size=64"), has_data=True)
    assert blocked.rules[0].fmt.block_size == 64
    plain = job(_compose(), has_data=True)
    assert (plain.rules, plain.gather) == ((), None)


@pytest.mark.parametrize(
    ("has_data", "form", "name"), [(True, "dq", "best"), (False, "dq", "rtn_dq"), (True, "qdq", "rtn_dq")]
)
def test_auto_follows_the_data_and_the_form(has_data, form, name):
    assert job(_compose(f"form={form}"), has_data).method.name == name


@pytest.mark.parametrize("experiment", _options("experiment"))
def test_every_experiment_composes_as_a_sweep(experiment):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    assert config.hydra.sweeper.params


def test_option_names_are_the_composed_keys():
    composed = flat_keys(OmegaConf.to_container(_compose()))  # pyright: ignore[reportArgumentType]
    assert set(composed) <= set(option_names())
