"""Every configuration that conf/ can express composes into the schema."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from jaxq.config import Config, conf_dir, flat_keys, method_spec, option_names, register
from jaxq.forms import FORMS
from jaxq.methods import METHODS

register()


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _compose(*overrides: str) -> Config:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("model", _options("model"))
@pytest.mark.parametrize("method", _options("method"))
def test_every_model_with_every_method(model, method):
    config = _compose(f"model={model}", f"method={method}")
    assert config.method.name == method
    assert config.block_size == 128
    assert config.form == ("qdq" if method == "rtn" else "dq")
    assert list(config.method.exclude) == ["*lm_head*"]


def test_the_method_group_has_every_method_and_auto():
    assert set(_options("method")) == {*METHODS, "auto"}


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("block_size", [-1, 16, 32, 64, 128, 256])
def test_every_form_takes_every_fused_block_size(form, block_size):
    spec = method_spec(_compose("method=rtn_dq", f"form={form}", f"block_size={block_size}"), has_data=False)
    assert spec.fmt.block_size == block_size


def test_the_block_size_follows_the_method_unless_given():
    assert _compose("method.default_block_size=32").block_size == 32
    assert _compose("method.default_block_size=32", "block_size=64").block_size == 64


@pytest.mark.parametrize(("has_data", "name"), [(True, "awq_lite"), (False, "rtn_dq")])
def test_auto_follows_the_data(has_data, name):
    assert method_spec(_compose(), has_data).name == name


@pytest.mark.parametrize("experiment", _options("experiment"))
def test_every_experiment_composes_as_a_sweep(experiment):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    assert config.hydra.sweeper.params


def test_option_names_are_the_composed_keys():
    composed = flat_keys(OmegaConf.to_container(_compose()))  # pyright: ignore[reportArgumentType]
    assert set(composed) <= set(option_names())
