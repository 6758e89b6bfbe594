"""A job: what is done to a model. It is checked before any work begins."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import platformdirs

from jaxq.errors import JaxqError
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import WeightFormat
from jaxq.forms.form import Form, Use
from jaxq.forms.registry import FORMS
from jaxq.graph.opset import FLOAT8_OPSET
from jaxq.graph.sites import Site, matches
from jaxq.graph.skipped import Skipped, skip
from jaxq.methods.registry import MethodSpec


@dataclass(frozen=True)
class Rule:
    """Another format for some weights.

    Attributes:
        patterns: Shell patterns of weight or node names.
        fmt: The format of these weights.
    """

    patterns: tuple[str, ...]
    fmt: WeightFormat


@dataclass(frozen=True)
class Gather:
    """The format of tables of Gather, such as embeddings, and of products that read the same table.

    A table that Gather alone reads is rounded to nearest.

    Attributes:
        axis: The axis that is split into blocks: 1 or -1 along rows, 0 down columns.
        fmt: The format.
    """

    axis: int
    fmt: WeightFormat

    @property
    def positive_axis(self) -> int:
        """The axis as 0 or 1.

        Raises:
            JaxqError: a table has no such axis.
        """
        if self.axis not in (-2, -1, 0, 1):
            raise JaxqError(f"gather.axis is {self.axis}: a table has the axes 0, 1 and -1")
        return self.axis % 2


@dataclass(frozen=True)
class Budget:
    """A number of bits to which the choice of formats keeps, weight by weight.

    Attributes:
        bits_per_weight: Mean over all quantized weights, scales and zero points included.
        full_range, scale_dtype: Scales of the integers that may be chosen; see `jaxq.formats.integers.IntegerFormat`.
            Codes of more than 4 bits have float16 scales in place of float8.
    """

    bits_per_weight: float
    full_range: bool = False
    scale_dtype: str = "float32"


def default_cache() -> Path:
    """The folder for what later runs can use again: $JAXQ_CACHE, or else the user's cache folder."""
    return Path(os.environ.get("JAXQ_CACHE") or platformdirs.user_cache_dir("jaxq"))


@dataclass(frozen=True)
class Job:
    """A quantization job: model, method, form and options.

    Attributes:
        source: The ONNX file.
        target: The path of the quantized file.
        method: The method and the format of weights without a rule.
        form: How the file stores quantized weights; see `jaxq.forms.registry.find_form`.
        exclude: Shell patterns of weight or node names that are skipped.
        cache: Folder for second moments and for the state of stopped runs. Moments of the same model and data that lie
            there are used.
        window_bytes: Bytes of the weights in a window of the calibration; two windows are in memory at a time.
        external_above: Weights of more bytes than this, all together, are written to a second file beside the target.
        rules: Formats of some weights; the first rule that fits a weight counts.
        gather: The format of tables of Gather; None skips them.
        providers: Where onnxruntime runs the calibration, such as "cpu", "cuda:0", "trt"; those that it lacks are
            skipped.
        kernels: Kernels of Conv are quantized; else they are skipped.
        budget: Formats are chosen weight by weight so that they keep to this; None leaves each weight the format that
            ``method``, ``rules`` and ``gather`` give it.

    Example:
        >>> from jaxq.formats import make_format
        >>> from jaxq.forms import find_form
        >>> method = MethodSpec("best", make_format("int4", 128))
        >>> job = Job(Path("model.onnx"), Path("model-int4.onnx"), method, find_form("matmulnbits"))
        >>> job.form.name, job.method.steps.needs_data
        ('matmulnbits', True)
    """

    source: Path
    target: Path
    method: MethodSpec
    form: Form = FORMS["dq"]
    exclude: tuple[str, ...] = ()
    cache: Path = field(default_factory=default_cache)
    window_bytes: int = 64 << 20
    external_above: int = 1 << 30
    rules: tuple[Rule, ...] = ()
    gather: Gather | None = None
    providers: tuple[str, ...] = ("cpu",)
    kernels: bool = True
    budget: Budget | None = None

    def format_of(self, site: Site) -> WeightFormat:
        """The format that method, rules and ``gather`` give a weight.

        Float8 scales are multiples of one number for the whole weight; stacks have float16 scales in their place.
        """
        rule = self._rule(site)
        fmt = self.method.fmt if rule is None else rule.fmt
        if site.has_table:
            assert self.gather is not None
            fmt = self.gather.fmt
        return replace(fmt, scale_dtype=_scale_dtype_of_site(site, fmt)) if isinstance(fmt, IntegerFormat) else fmt

    def formats_of(self, site: Site) -> tuple[WeightFormat, ...]:
        """The formats among which a budget chooses for a weight; without a budget, or with a rule, there is one."""
        fmt = self.format_of(site)
        if self.budget is None or (not site.has_table and self._rule(site) is not None):
            return (fmt,)
        others = self.form.alternatives(fmt, self.budget.full_range, _scale_dtype_of_site(site, self.budget))
        return tuple(other for other in others if self.form.why_unsupported(other, site) is None)

    def _rule(self, site: Site) -> Rule | None:
        fitting = (rule for rule in self.rules if any(matches(site.weight, p) for p in rule.patterns))
        return next(fitting, None)


def _scale_dtype_of_site(site: Site, scales: IntegerFormat | Budget) -> str:
    return "float16" if site.count > 1 and scales.scale_dtype == FLOAT8 else scales.scale_dtype


def check_job(job: Job, has_data: bool) -> Form:
    """The job's form, with the least opset that the job's formats need.

    Args:
        job: The job.
        has_data: There is calibration data.

    Raises:
        JaxqError: the form does not support a format or the method, or the method lacks data.
    """
    uses = _uses(job)
    job.form.check(uses, FORMS.values())
    _check_codes(job)
    if job.method.steps.needs_data and not has_data:
        raise JaxqError(
            f"method {job.method.name} needs calibration data and there is none: give calib.tokens=<npz file>, or "
            "calib.text=<text> with calib.tokenizer=<tokenizer.json>, or take method=rtn_dq, which needs none"
        )
    if any(isinstance(use.fmt, IntegerFormat) and use.fmt.scale_dtype == FLOAT8 for use in uses):
        return replace(job.form, opset=max(job.form.opset, FLOAT8_OPSET))
    return job.form


def _uses(job: Job) -> list[Use]:
    """All formats that the file may have to store."""
    uses = [Use(job.method.fmt), *(Use(rule.fmt, "mixed.block_size") for rule in job.rules)]
    if job.gather is not None:
        uses.append(Use(job.gather.fmt, "gather.block_size", job.gather.positive_axis))
    if job.budget is not None:
        budget, integers = job.budget, [use for use in uses if isinstance(use.fmt, IntegerFormat)]
        for use in integers:
            others = job.form.alternatives(use.fmt, budget.full_range, budget.scale_dtype)
            uses += [replace(use, fmt=other) for other in others]
    return uses


def _check_codes(job: Job) -> None:
    """Refuses methods whose codes are not those of the float weight, in forms that store the float weight."""
    steps = job.method.steps
    if job.form.scaled or not (steps.scales or steps.compensates):
        return
    action = "scales them" if steps.scales else "chooses other codes than the nearest"
    forms = [name for name, form in FORMS.items() if form.scaled and job.method.fmt.dtype in form.block_sizes]
    raise JaxqError(
        f"form {job.form.name} stores the float weights, but {job.method.name} {action}: take form={' or '.join(forms)}"
    )


def split_supported(job: Job, sites: Sequence[Site]) -> tuple[list[Site], list[Skipped]]:
    """The sites that the job quantizes, and the others with the reason."""
    reasons = {site: _unsupported_reason(job, site) for site in sites}
    supported = [site for site, reason in reasons.items() if reason is None]
    return supported, [skip(site.weight, reason) for site, reason in reasons.items() if reason is not None]


def _unsupported_reason(job: Job, site: Site) -> str | None:
    if site.kernel and not job.kernels:
        return "a kernel of Conv: these are skipped here"
    return job.form.why_unsupported(job.format_of(site), site, FORMS.values())


def useless_patterns(job: Job, sites: Sequence[Site]) -> list[str]:
    """Patterns of rules that fit no weight that is quantized: misspelt, perhaps."""
    return [p for p in _patterns(job) if not any(matches(site.weight, p) for site in sites)]


def patterns_of_tables(job: Job, sites: Sequence[Site]) -> list[str]:
    """Patterns of rules that fit tables alone, to which rules do not apply."""
    fits = {p: [site.has_table for site in sites if matches(site.weight, p)] for p in _patterns(job)}
    return [p for p, tables in fits.items() if tables and all(tables)]


def _patterns(job: Job) -> list[str]:
    return [p for rule in job.rules for p in rule.patterns]
