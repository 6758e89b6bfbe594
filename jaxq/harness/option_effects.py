"""Which runs read an option: an option that the user gives and that the run would not read is refused.

Only options on the command line are refused. Those of presets, experiments and defaults hold for many runs, so a run
may leave them unread. `EFFECTS` is the one table; the page of all options shows it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from jaxq.errors import JaxqError
from jaxq.forms.registry import FORMS, find_form
from jaxq.harness.config import Config, flat_keys
from jaxq.harness.data_use import (
    draws,
    evaluates_calibration_source,
    evaluates_dataset,
    evaluates_text,
    has_calibration,
    has_evaluation,
    names_several,
    names_text,
)
from jaxq.harness.make_job import method_name
from jaxq.methods.registry import METHODS, Method, find_method


@dataclass(frozen=True)
class Run:
    """A run, as far as it decides which options are read.

    Attributes:
        config: The configuration.
        uses_data: There is calibration data, or there may be.
    """

    config: Config
    uses_data: bool

    @property
    def method(self) -> str:
        """Name of the method; that which ``auto`` takes."""
        return method_name(self.config, find_form(self.config.form.name), self.uses_data)

    @property
    def steps(self) -> Method:
        """The steps of the method."""
        return find_method(self.method)


@dataclass(frozen=True)
class Effect:
    """The runs that read an option.

    Attributes:
        readers: These runs, in the words of the command line.
        reads: True for such a run.
        cause: The option whose value decides it, or a function that finds it; None where several do.
    """

    readers: str
    reads: Callable[[Run], bool]
    cause: str | Callable[[Run], str] | None = None


SHARED = (
    *("calib.tokens", "calib.text", "calib.dataset", "calib.source", "calib.self_share"),
    *("block_size", "gather.block_size"),
)
"""Options that a sweep may give to runs that do not read them: its runs round to nearest beside methods that calibrate,
or have NVFP4 beside integers in blocks of 16."""

_GIVEN_BY_DATA = ("calib.tokens", "calib.text", "calib.dataset")
"""Options that ``--data`` may stand for."""


def check_options(config: Config, overrides: Iterable[str], uses_data: bool, sweeps: bool = False) -> None:
    """Refuses options that the user gives and that change nothing.

    In a sweep each job is checked by itself: those that read the option run, and the table of the sweep names the
    others. Their results would stand beside a value that they never used. Options in `SHARED` are not refused there.

    Args:
        config: The configuration.
        overrides: The overrides of the run, as on the command line.
        uses_data: There is calibration data, or there may be.
        sweeps: The run is one of a sweep.

    Raises:
        JaxqError: an option has no effect; the sentence names the option, its reason, and what reads the option.
    """
    run = Run(config, uses_data)
    for key in given_keys(overrides):
        effect = EFFECTS.get(key)
        if effect is None or (sweeps and key in SHARED) or effect.reads(run):
            continue
        reason = f" with {_value(effect.cause, run)}" if effect.cause else ""
        flag = ", or the data (--data) that it stands for" if key in _GIVEN_BY_DATA else ""
        raise JaxqError(f"{key} changes nothing{reason}: leave it out{flag}; it is read with {effect.readers}")


def given_keys(overrides: Iterable[str]) -> list[str]:
    """Keys of the options that overrides give a value; null and 0 samples ask for nothing and are left out.

    The last override of a key counts, as in the configuration.

    Example:
        >>> given_keys(["method=best", "calib.samples=0", "mixed.int8=[a]", "~gather.axis", "eval={length: 64}"])
        ['mixed.int8', 'eval.length']
    """
    values = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        values[override.key_or_group] = None if override.is_delete() else override.value()
    keys = []
    for key, value in values.items():
        if value is None or (key.endswith(".samples") and value == 0):
            continue
        keys += flat_keys(value, f"{key}.") if isinstance(value, Mapping) else [key]
    return [key for key in keys if key in EFFECTS]


def _value(cause: str | Callable[[Run], str], run: Run) -> str:
    cause = cause if isinstance(cause, str) else cause(run)
    if cause == "method.name":
        name = run.config.method.name
        return f"method={name}" if name == run.method else f"method={name}, which is {run.method} here"
    value = OmegaConf.select(cast(DictConfig, run.config), cause)
    return f"{cause.removesuffix('.name')}={'null' if value is None else value}"


def _every() -> Effect:
    return Effect("every run", lambda _: True)


def _model(name: str) -> Effect:
    return Effect(f"model={name}", lambda run: run.config.model.name == name, "model.name")


def _steps(reads: Callable[[Method, bool], bool], also: str = "") -> Effect:
    """An option of the methods whose steps ``reads`` accepts; its second argument is ``method.block_scales``."""
    names = [name for name, steps in METHODS.items() if reads(steps, False)]
    return Effect(
        f"method={' or '.join(names)}{also}",
        lambda run: reads(run.steps, bool(run.config.method.block_scales)),
        "method.name",
    )


def _searches(steps: Method, block_scales: bool) -> bool:
    return steps.searches or (steps.needs_data and block_scales)


def _reads_full_range(run: Run) -> bool:
    config = run.config
    tables = config.gather.axis is not None and "int" in config.gather.dtype
    budget = config.method.bits_per_weight is not None and ("int" in config.dtype.name or tables)
    return config.dtype.name.startswith("int") or budget


def _calibrates(run: Run) -> bool:
    """True for methods that use calibration data: those with a search, and every one under a budget."""
    return run.steps.needs_data or run.config.method.bits_per_weight is not None


def _reads_source(run: Run) -> bool:
    config = run.config
    return (config.calib.samples > 0 and _calibrates(run)) or evaluates_calibration_source(config)


def _source(others: str = "") -> Effect:
    """An option that names calibration data; ``others`` are runs that read it for the evaluation alone."""
    return Effect(
        f"{_CALIBRATING}{others}; data for the evaluation alone is eval.text, eval.dataset, eval.tokens or eval.source",
        _reads_source,
        lambda run: "method.name" if run.config.calib.samples > 0 else "calib.samples",
    )


_CALIBRATING = "methods that use calibration data, such as method=best, or with method.bits_per_weight"
_CALIBRATION = Effect(
    "calibration data, which calib.text, calib.dataset or calib.tokens gives", lambda run: has_calibration(run.config)
)
_EVALUATION = Effect(
    "held-out data, which eval.text, eval.dataset or eval.tokens gives", lambda run: has_evaluation(run.config)
)
_EVAL_SAMPLES = Effect("eval.samples above 0", lambda run: run.config.eval.samples > 0, "eval.samples")
_CALIB_DATASET = Effect("calib.dataset", lambda run: bool(run.config.calib.dataset), "calib.dataset")
_EVAL_DATASET = Effect("eval.dataset, or calib.dataset and eval.split", lambda run: evaluates_dataset(run.config))
_TABLES = Effect("gather.axis=0, 1 or -1", lambda run: run.config.gather.axis is not None, "gather.axis")
_SCALES = _steps(lambda steps, _: steps.scales)
_CLIPS = _steps(
    lambda steps, block_scales: steps.clips and not _searches(steps, block_scales), ", without block_scales"
)
_SEARCHES = _steps(_searches, ", and with method.block_scales=true")

EFFECTS: Mapping[str, Effect] = {
    "model.name": _every(),
    "model.path": _model("onnx"),
    "model.id": _model("hf"),
    "model.dtype": _model("hf"),
    "method.name": _every(),
    "method.full_range": Effect("dtypes int2 to int8, and budgets of integers", _reads_full_range, "dtype.name"),
    "method.alpha_step": _SCALES,
    "method.search_columns": _SCALES,
    "method.min_clip_ratio": _CLIPS,
    "method.clip_step": _CLIPS,
    "method.block_scales": _steps(lambda steps, _: steps.needs_data and not steps.searches),
    "method.damping": _SEARCHES,
    "method.descent_passes": _steps(lambda steps, _: steps.compensates),
    "method.ridge": _steps(lambda steps, _: steps.propagates),
    "method.shrinkage": _SEARCHES,
    "method.bits_per_weight": _every(),
    "method.exclude": _every(),
    "dtype.name": _every(),
    "dtype.default_block_size": Effect(
        "no block_size, which counts more",
        lambda run: OmegaConf.is_interpolation(run.config, "block_size"),
        "block_size",
    ),
    "form.name": _every(),
    "form.accuracy_level": Effect(
        f"form={' or '.join(name for name, form in FORMS.items() if form.stores_accuracy_level)}",
        lambda run: find_form(run.config.form.name).stores_accuracy_level,
        "form.name",
    ),
    "mixed.int8": _every(),
    "mixed.block_size": Effect("mixed.int8=[PATTERN]", lambda run: bool(run.config.mixed.int8), "mixed.int8"),
    "gather.axis": _every(),
    "gather.dtype": _TABLES,
    "gather.block_size": Effect(
        "gather.axis=0, 1 or -1, and gather.dtype of integers; others have one block size",
        lambda run: run.config.gather.axis is not None and "int" in run.config.gather.dtype,
        lambda run: "gather.axis" if run.config.gather.axis is None else "gather.dtype",
    ),
    "calib.tokens": _source(", or with an array eval in the file"),
    "calib.text": _source(", or eval.holdout_fraction"),
    "calib.dataset": _source(", or eval.holdout_fraction or eval.split"),
    "calib.shares": Effect("several texts or datasets", lambda run: names_several(run.config.calib)),
    "calib.source": _source(),
    "calib.subset": _CALIB_DATASET,
    "calib.split": _CALIB_DATASET,
    "calib.column": _CALIB_DATASET,
    "calib.tokenizer": Effect(
        "text or a dataset",
        lambda run: (
            names_text(run.config.calib)
            or names_text(run.config.eval)
            or evaluates_dataset(run.config)
            or draws(run.config)
        ),
    ),
    "calib.samples": _CALIBRATION,
    "calib.length": Effect(
        "calibration text; token files have their own length",
        lambda run: has_calibration(run.config) and not run.config.calib.tokens,
    ),
    "calib.batch_size": _CALIBRATION,
    "calib.self_share": _source(),
    "eval.tokens": _EVAL_SAMPLES,
    "eval.text": _EVAL_SAMPLES,
    "eval.dataset": _EVAL_SAMPLES,
    "eval.shares": Effect("several texts or datasets", lambda run: names_several(run.config.eval)),
    "eval.source": _EVAL_SAMPLES,
    "eval.subset": _EVAL_DATASET,
    "eval.split": _EVAL_DATASET,
    "eval.column": _EVAL_DATASET,
    "eval.tokenizer": Effect(
        "held-out text or a dataset", lambda run: names_text(run.config.eval) or evaluates_dataset(run.config)
    ),
    "eval.samples": _EVALUATION,
    "eval.length": Effect("held-out text; token files have their own length", lambda run: evaluates_text(run.config)),
    "eval.batch_size": _EVALUATION,
    "eval.holdout_fraction": _EVAL_SAMPLES,
    "block_size": Effect(
        "integer dtypes; others have one block size", lambda run: "int" in run.config.dtype.name, "dtype.name"
    ),
    "scale_dtype": Effect("integer dtypes", lambda run: "int" in run.config.dtype.name, "dtype.name"),
    "dry_run": _every(),
    "cache_dir": _every(),
    "window_gb": _steps(lambda steps, _: steps.needs_data),
    "external_data_above_mb": _every(),
}
"""The runs that read each option."""
