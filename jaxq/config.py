"""What a run can be told: the schema that Hydra checks ``conf/`` and the command line against."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from jaxq.awq import alpha_grid, ratio_grid
from jaxq.errors import JaxqError
from jaxq.formats import IntegerFormat
from jaxq.forms import find_form
from jaxq.integer import code_range
from jaxq.methods import MethodSpec, find_method


@dataclass
class ModelConfig:
    """Which model: ``embedded``, or an ONNX file at ``path``."""

    name: str = MISSING
    path: str | None = None


@dataclass
class MethodConfig:
    """A method and its knobs; see `jaxq.methods.MethodSpec`."""

    name: str = MISSING
    default_block_size: int = MISSING
    form: str = MISSING
    num_bits: int = MISSING
    use_zero_point: bool = MISSING
    full_range: bool = MISSING
    alpha_step: float = MISSING
    search_columns: int = MISSING
    min_alpha: float = MISSING
    clip_step: float = MISSING
    exclude: list[str] = MISSING


@dataclass
class DataConfig:
    """Where text or tokens come from; see `jaxq.inputs`."""

    tokens: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    samples: int = MISSING
    length: int = MISSING
    batch_size: int = MISSING


@dataclass
class Config:
    """A run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    calib: DataConfig = field(default_factory=DataConfig)
    eval: DataConfig = field(default_factory=DataConfig)
    block_size: int = MISSING
    form: str = MISSING
    cache_dir: str | None = None
    window_mb: int = MISSING
    external_data_mb: int = MISSING


def register() -> None:
    """Makes the schema known to Hydra as ``schema/run``."""
    ConfigStore.instance().store(group="schema", name="run", node=Config, package="_global_")


def option_names() -> list[str]:
    """All keys of the configuration, as they are written on the command line."""
    return flat_keys(OmegaConf.to_container(OmegaConf.structured(Config)))


def flat_keys(node: object, prefix: str = "") -> list[str]:
    """Keys of nested dictionaries, joined by dots.

    Example:
        >>> flat_keys({"a": {"b": 1}, "c": 2})
        ['a', 'a.b', 'c']
    """
    if not isinstance(node, Mapping):
        return []
    return [name for key, value in node.items() for name in (f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}."))]


def conf_dir() -> Path:
    """The folder of YAML files: within the installed package, or at the root of a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def cache_dir(config: Config) -> Path:
    """Folder for what later runs can use again: ``cache_dir``, $JAXQ_CACHE, or the user's cache folder."""
    return Path(config.cache_dir or os.environ.get("JAXQ_CACHE") or platformdirs.user_cache_dir("jaxq"))


def method_spec(config: Config, has_data: bool) -> MethodSpec:
    """The method of a run, checked: ``auto`` is AWQ-lite with calibration data and plain rounding without.

    Raises:
        JaxqError: a value is out of range, or the form cannot hold the format.
    """
    knobs = config.method
    name = knobs.name
    full_range = knobs.full_range
    if name == "auto":
        name = "awq_lite" if has_data else "rtn_dq"
        full_range = full_range and has_data  # as conf/method/rtn_dq.yaml has it
    find_method(name)
    code_range(knobs.num_bits, knobs.use_zero_point)
    alpha_grid(knobs.alpha_step)
    ratio_grid(knobs.min_alpha, knobs.clip_step)
    if knobs.search_columns < 0:
        raise JaxqError(f"search_columns is {knobs.search_columns}: give a number of columns, or 0 for all")
    fmt = IntegerFormat(config.block_size, knobs.num_bits, knobs.use_zero_point, full_range)
    find_form(config.form, fmt)
    for key in ("window_mb", "external_data_mb"):
        if getattr(config, key) < (key == "window_mb"):
            raise JaxqError(f"{key} is {getattr(config, key)}: give a positive number of megabytes")
    return MethodSpec(name, fmt, knobs.alpha_step, knobs.min_alpha, knobs.clip_step, knobs.search_columns)
