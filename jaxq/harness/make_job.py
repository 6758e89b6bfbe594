"""From a composed configuration to a checked job."""

from collections.abc import Iterator
from pathlib import Path

from jaxq.errors import JaxqError
from jaxq.files.model_file import PROTOBUF_LIMIT
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.forms.form import Form
from jaxq.forms.registry import find_form
from jaxq.harness.config import Config, MethodConfig, cache_dir
from jaxq.methods.grids import alpha_grid, ratio_grid
from jaxq.methods.registry import MethodSpec, find_method
from jaxq.pipeline.job import Budget, Gather, Job, Rule, check_job

_SCALE_DTYPES = {"float32": "float32", "float16": "float16", "float8": FLOAT8}
"""Types of scales by their names on the command line."""


def make_job(config: Config, source: Path, target: Path, has_data: bool) -> Job:
    """The job of a run, checked.

    Args:
        config: The configuration.
        source: The ONNX file.
        target: The path of the quantized file.
        has_data: There is calibration data.

    Raises:
        JaxqError: a value is out of range, no form supports what is asked for, or the method lacks data.
    """
    if not config.window_gb * (1 << 30) >= 1:
        raise JaxqError(f"window_gb is {config.window_gb}: give a positive number of gigabytes, such as 0.0625")
    if config.external_data_above_mb < 0:
        raise JaxqError(
            f"external_data_above_mb is {config.external_data_above_mb}: give a positive number of megabytes"
        )
    form = find_form(config.form.name, config.form.accuracy_level)
    spec = method_spec(config, form, has_data)
    if config.method.name == "nvfp4" and spec.fmt.dtype != "nvfp4":
        raise JaxqError(f"method=nvfp4 with dtype={spec.fmt.dtype}: take method=rtn_dq for other dtypes")
    job = Job(
        source=source,
        target=target,
        method=spec,
        form=form,
        exclude=tuple(config.method.exclude),
        cache=cache_dir(config),
        window_bytes=int(config.window_gb * (1 << 30)),
        external_above=min(config.external_data_above_mb << 20, PROTOBUF_LIMIT),
        rules=tuple(_rules(config, form)),
        gather=_gather(config, form),
        budget=_budget(config, form, spec),
    )
    check_job(job, has_data)
    return job


def method_spec(config: Config, form: Form, has_data: bool) -> MethodSpec:
    """The method of a run, checked.

    Raises:
        JaxqError: a value is out of range.
    """
    knobs = config.method
    name = method_name(config, form, has_data)
    _check_ranges(knobs)
    fmt = make_format(config.dtype.name, config.block_size, _full_range(config, form, name), _scale_dtype(config, form))
    if config.scale_dtype is not None and not isinstance(fmt, IntegerFormat):
        raise JaxqError(f"scale_dtype is {config.scale_dtype!r}: {fmt.dtype} has scales of its own; leave it out")
    return MethodSpec(
        name,
        fmt,
        knobs.alpha_step,
        knobs.min_clip_ratio,
        knobs.clip_step,
        knobs.search_columns,
        block_scales=knobs.block_scales,
        damping=knobs.damping,
        descent_passes=knobs.descent_passes,
        ridge=knobs.ridge,
        shrinkage=knobs.shrinkage,
    )


def method_name(config: Config, form: Form, has_data: bool) -> str:
    """The name of a run's method.

    ``auto`` is ``best`` with calibration data, and ``rtn_dq`` without data or where the form stores the float weights.
    """
    if config.method.name != "auto":
        return config.method.name
    return "best" if has_data and form.scaled else "rtn_dq"


def _check_ranges(knobs: MethodConfig) -> None:
    alpha_grid(knobs.alpha_step)
    ratio_grid(knobs.min_clip_ratio, knobs.clip_step)
    if knobs.search_columns < 0:
        raise JaxqError(f"search_columns is {knobs.search_columns}: give a number of columns, or 0 for all")
    if not 0 <= knobs.damping <= 10:
        raise JaxqError(f"method.damping is {knobs.damping}: give a number from 0 to 10, such as 0.05")
    if not 0 <= knobs.descent_passes <= 100:
        raise JaxqError(f"method.descent_passes is {knobs.descent_passes}: give a number of passes from 0 to 100")
    if not 1e-3 <= knobs.ridge <= 1e9:
        raise JaxqError(f"method.ridge is {knobs.ridge}: give a number of tokens from 0.001 to 1e9, such as 4096")
    if not 0 <= knobs.shrinkage <= 1e9:
        raise JaxqError(f"method.shrinkage is {knobs.shrinkage}: give a number of tokens from 0 to 1e9, such as 900")
    if (bits := knobs.bits_per_weight) is not None and not 0 < bits <= 32:
        raise JaxqError(f"method.bits_per_weight is {bits}: give a number of bits up to 32, such as 4.5")


def _full_range(config: Config, form: Form, method: str) -> bool:
    """True if integers get full-range scales: as the user asks, else where scales are searched and may be negative."""
    if config.method.full_range is not None:
        return config.method.full_range
    return find_method(method).needs_data and form.negative_scales


def _scale_dtype(config: Config, form: Form) -> str:
    """The widest type of integers' scales: as the user asks, else float8 where a budget counts bytes, or float32."""
    if config.scale_dtype is None:
        return FLOAT8 if config.method.bits_per_weight is not None and form.casts else "float32"
    if config.scale_dtype not in _SCALE_DTYPES:
        raise JaxqError(f"scale_dtype is {config.scale_dtype!r}: choose one of {', '.join(_SCALE_DTYPES)}")
    return _SCALE_DTYPES[config.scale_dtype]


def _rules(config: Config, form: Form) -> Iterator[Rule]:
    block_size = config.mixed.block_size
    if block_size is None:
        block_size = -1 if -1 in form.block_sizes.get("int8", ()) else config.block_size
    if config.mixed.int8:
        yield Rule(tuple(config.mixed.int8), make_format("int8", block_size, scale_dtype=_scale_dtype(config, form)))


def _gather(config: Config, form: Form) -> Gather | None:
    gather, scale_dtype = config.gather, _scale_dtype(config, form)
    fmt = make_format(gather.dtype, gather.block_size, scale_dtype=scale_dtype, option="gather.block_size")
    return None if gather.axis is None else Gather(gather.axis, fmt)


def _budget(config: Config, form: Form, spec: MethodSpec) -> Budget | None:
    bits = config.method.bits_per_weight
    return None if bits is None else Budget(bits, _full_range(config, form, spec.name), _scale_dtype(config, form))
