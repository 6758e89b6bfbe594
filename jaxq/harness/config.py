"""What a run can be told: the schema that Hydra checks ``conf/`` and the command line against."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

import jaxq
from jaxq.pipeline.job import default_cache


@dataclass
class ModelConfig:
    """Which model: ``embedded``, an ONNX file at ``path``, or the Hugging Face model ``id``."""

    name: str = MISSING
    path: str | None = None
    id: str | None = None
    dtype: str = "float32"


@dataclass
class MethodConfig:
    """A method and its knobs; see `jaxq.methods.registry.MethodSpec`."""

    name: str = MISSING
    full_range: bool | None = None
    alpha_step: float = MISSING
    search_columns: int = MISSING
    min_clip_ratio: float = MISSING
    clip_step: float = MISSING
    block_scales: bool = MISSING
    damping: float = MISSING
    descent_passes: int = MISSING
    ridge: float = MISSING
    shrinkage: float = MISSING
    bits_per_weight: float | None = None
    exclude: list[str] = MISSING


@dataclass
class DtypeConfig:
    """How weights are held; see `jaxq.formats.registry.make_format`."""

    name: str = MISSING
    default_block_size: int = MISSING


@dataclass
class FormConfig:
    """How the file says it; see `jaxq.forms.registry`."""

    name: str = MISSING
    accuracy_level: int = MISSING


@dataclass
class MixedConfig:
    """Weights in 8 bits."""

    int8: list[str] = MISSING
    block_size: int | None = None


@dataclass
class GatherConfig:
    """Tables of Gather; see `jaxq.pipeline.job.Gather`."""

    axis: int | None = None
    dtype: str = MISSING
    block_size: int | None = None


@dataclass
class DataConfig:
    """Where text or tokens come from; see `jaxq.data.token_files`."""

    tokens: str | None = None
    text: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None
    column: str | None = None
    tokenizer: str | None = None
    samples: int = MISSING
    length: int = MISSING
    batch_size: int = MISSING


@dataclass
class EvalConfig(DataConfig):
    """The same for the evaluation, and the share of the calibration text that is kept for it."""

    share: float = 0.0


@dataclass
class Config:
    """A run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    dtype: DtypeConfig = field(default_factory=DtypeConfig)
    form: FormConfig = field(default_factory=FormConfig)
    mixed: MixedConfig = field(default_factory=MixedConfig)
    gather: GatherConfig = field(default_factory=GatherConfig)
    calib: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    block_size: int = MISSING
    scale_dtype: str | None = None
    dry_run: bool = False
    cache_dir: str | None = None
    window_gb: float = MISSING
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
    package = Path(jaxq.__file__).parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def cache_dir(config: Config) -> Path:
    """The folder for what later runs can use again: ``cache_dir``, or `jaxq.pipeline.job.default_cache`."""
    return Path(config.cache_dir) if config.cache_dir else default_cache()
