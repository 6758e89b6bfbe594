"""What a run can be told: the schema that Hydra checks ``conf/`` and the command line against."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from jaxq.awq import alpha_grid, ratio_grid
from jaxq.errors import JaxqError
from jaxq.formats import FLOAT8, IntegerFormat, make_format
from jaxq.forms import find_form
from jaxq.job import Budget, Gather, Job, Rule, check_job
from jaxq.methods import MethodSpec, find_method
from jaxq.model_file import PROTOBUF_LIMIT


@dataclass
class ModelConfig:
    """Which model: ``embedded``, an ONNX file at ``path``, or the Hugging Face model ``id``; see `jaxq.hf`."""

    name: str = MISSING
    path: str | None = None
    id: str | None = None
    dtype: str = "float32"


@dataclass
class MethodConfig:
    """A method and its knobs; see `jaxq.methods.MethodSpec`."""

    name: str = MISSING
    full_range: bool | None = None
    alpha_step: float = MISSING
    search_columns: int = MISSING
    min_alpha: float = MISSING
    clip_step: float = MISSING
    block_scales: bool = MISSING
    damping: float = MISSING
    sweeps: int = MISSING
    ridge: float = MISSING
    shrinkage: float = MISSING
    bits_per_weight: float | None = None
    exclude: list[str] = MISSING


@dataclass
class DtypeConfig:
    """How weights are held; see `jaxq.formats.make_format`."""

    name: str = MISSING
    default_block_size: int = MISSING


@dataclass
class FormConfig:
    """How the file says it; see `jaxq.forms`."""

    name: str = MISSING
    accuracy_level: int = MISSING


@dataclass
class MixedConfig:
    """Weights in 8 bits."""

    int8: list[str] = MISSING
    block_size: int | None = None


@dataclass
class GatherConfig:
    """Tables of Gather; see `jaxq.job.Gather`."""

    axis: int | None = None
    dtype: str = MISSING
    block_size: int | None = None


@dataclass
class DataConfig:
    """Where text or tokens come from; see `jaxq.data`."""

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
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def cache_dir(config: Config) -> Path:
    """Folder for what later runs can use again: ``cache_dir``, $JAXQ_CACHE, or the user's cache folder."""
    return Path(config.cache_dir or os.environ.get("JAXQ_CACHE") or platformdirs.user_cache_dir("jaxq"))


def method_spec(config: Config, has_data: bool) -> MethodSpec:
    """The method of a run, checked.

    ``auto`` is ``best`` with calibration data, and plain rounding without or where the form keeps float weights.

    Raises:
        JaxqError: a value is out of range.
    """
    knobs = config.method
    name = knobs.name
    if name == "auto":
        name = "best" if has_data and find_form(config.form.name).scaled else "rtn_dq"
    alpha_grid(knobs.alpha_step)
    ratio_grid(knobs.min_alpha, knobs.clip_step)
    if knobs.search_columns < 0:
        raise JaxqError(f"search_columns is {knobs.search_columns}: give a number of columns, or 0 for all")
    fmt = make_format(config.dtype.name, config.block_size, _full_range(config, name), _scale_dtype(config))
    if config.scale_dtype is not None and not isinstance(fmt, IntegerFormat):
        raise JaxqError(f"scale_dtype is {config.scale_dtype!r}: {fmt.dtype} has scales of its own; leave it out")
    if not 0 <= knobs.damping <= 10:
        raise JaxqError(f"method.damping is {knobs.damping}: give a number from 0 to 10, such as 0.05")
    if not 0 <= knobs.sweeps <= 100:
        raise JaxqError(f"method.sweeps is {knobs.sweeps}: give a number of passes from 0 to 100")
    if not 1e-3 <= knobs.ridge <= 1e9:
        raise JaxqError(f"method.ridge is {knobs.ridge}: give a number of tokens from 0.001 to 1e9, such as 4096")
    if not 0 <= knobs.shrinkage <= 1e9:
        raise JaxqError(f"method.shrinkage is {knobs.shrinkage}: give a number of tokens from 0 to 1e9, such as 900")
    return MethodSpec(
        name,
        fmt,
        knobs.alpha_step,
        knobs.min_alpha,
        knobs.clip_step,
        knobs.search_columns,
        block_scales=knobs.block_scales,
        damping=knobs.damping,
        sweeps=knobs.sweeps,
        ridge=knobs.ridge,
        shrinkage=knobs.shrinkage,
    )


def _full_range(config: Config, method: str) -> bool:
    """Whether integers have such scales: what is asked for, or where they are searched and the form takes them."""
    asked = config.method.full_range
    return find_method(method).needs_data and find_form(config.form.name).negative_scales if asked is None else asked


def _rules(config: Config) -> Iterator[Rule]:
    block_size = config.mixed.block_size
    if block_size is None:
        per_channel = -1 in find_form(config.form.name).holds.get("int8", ())
        block_size = -1 if per_channel else config.block_size
    if config.mixed.int8:
        yield Rule(tuple(config.mixed.int8), make_format("int8", block_size, scale_dtype=_scale_dtype(config)))


def _scale_dtype(config: Config) -> str:
    """The widest type of integers' scales: what is asked for, or the narrowest where bytes are counted."""
    if config.scale_dtype is None:
        counted = config.method.bits_per_weight is not None
        return FLOAT8 if counted and find_form(config.form.name).casts else "float32"
    if config.scale_dtype not in _SCALE_DTYPES:
        raise JaxqError(f"scale_dtype is {config.scale_dtype!r}: choose one of {', '.join(_SCALE_DTYPES)}")
    return _SCALE_DTYPES[config.scale_dtype]


_SCALE_DTYPES = {"float32": "float32", "float16": "float16", "float8": FLOAT8}


def make_job(config: Config, source: Path, target: Path, has_data: bool) -> Job:
    """What a run is to do, checked.

    Raises:
        JaxqError: a value is out of range, no form can hold what is asked for, or the method lacks data.
    """
    if not config.window_gb * (1 << 30) >= 1:
        raise JaxqError(f"window_gb is {config.window_gb}: give a positive number of gigabytes, such as 0.0625")
    if config.external_data_mb < 0:
        raise JaxqError(f"external_data_mb is {config.external_data_mb}: give a positive number of megabytes")
    spec, gather = method_spec(config, has_data), config.gather
    if config.method.name == "nvfp4" and spec.fmt.dtype != "nvfp4":
        raise JaxqError(f"method=nvfp4 with dtype={spec.fmt.dtype}: take method=rtn_dq for other dtypes")
    if (bits := config.method.bits_per_weight) is not None and not 0 < bits <= 32:
        raise JaxqError(f"method.bits_per_weight is {bits}: give a number of bits up to 32, such as 4.5")
    table = make_format(gather.dtype, gather.block_size, scale_dtype=_scale_dtype(config), option="gather.block_size")
    job = Job(
        source=source,
        target=target,
        method=spec,
        form=config.form.name,
        exclude=tuple(config.method.exclude),
        cache=cache_dir(config),
        window_bytes=int(config.window_gb * (1 << 30)),
        external_above=min(config.external_data_mb << 20, PROTOBUF_LIMIT),
        rules=tuple(_rules(config)),
        gather=None if gather.axis is None else Gather(gather.axis, table),
        accuracy_level=config.form.accuracy_level,
        budget=None if bits is None else Budget(bits, _full_range(config, spec.name), _scale_dtype(config)),
    )
    check_job(job, has_data)
    return job
