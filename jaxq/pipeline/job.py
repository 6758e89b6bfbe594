"""What to do to a model, and whether it can be done at all: checked before any work."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxq.errors import JaxqError
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import WeightFormat
from jaxq.forms.limits import Use, alternatives, check_supported, why_unsupported
from jaxq.forms.registry import FORMS, Form, find_form
from jaxq.graph.opset import FLOAT8_OPSET
from jaxq.graph.sites import Site, matches
from jaxq.graph.skipped import Skipped, skip
from jaxq.methods.registry import MethodSpec, find_method


@dataclass(frozen=True)
class Rule:
    """Another format for some weights.

    Attributes:
        patterns: Shell patterns of weight or node names.
        fmt: Their format.
    """

    patterns: tuple[str, ...]
    fmt: WeightFormat


@dataclass(frozen=True)
class Gather:
    """How tables of Gather, such as embeddings, are held, and products that read the same table.

    A table that Gather alone reads is rounded to nearest.

    Attributes:
        axis: The axis that is split into blocks: 1 or -1 along rows, 0 down columns.
        fmt: Their format.
    """

    axis: int
    fmt: WeightFormat

    @property
    def positive_axis(self) -> int:
        """0 or 1.

        Raises:
            JaxqError: a table has no such axis.
        """
        if self.axis not in (-2, -1, 0, 1):
            raise JaxqError(f"gather.axis is {self.axis}: a table has the axes 0, 1 and -1")
        return self.axis % 2


@dataclass(frozen=True)
class Budget:
    """A number of bits, and what the integers among which it chooses have in common.

    Attributes:
        bits_per_weight: Of all quantized weights on average, scales and zero points included.
        full_range, scale_dtype: See `IntegerFormat`; more than 4 bits get float16 for float8.
    """

    bits_per_weight: float
    full_range: bool = False
    scale_dtype: str = "float32"


@dataclass(frozen=True)
class Job:
    """What to do to a model.

    Attributes:
        source: The ONNX file.
        target: Where the quantized one goes.
        method: The method and the format.
        form: A key of `jaxq.forms.registry.FORMS`.
        exclude: Patterns of weight or node names to leave alone.
        cache: Folder for moments; what is there of the same model and data is used.
        window_bytes: Weight bytes of a window of the calibration; two are in memory at a time.
        external_above: Weights of more bytes than this go to a file of their own.
        rules: Formats of some weights; the first rule that fits counts.
        gather: How tables of Gather are held; None leaves them alone.
        accuracy_level: What the form ``matmulnbits`` tells onnxruntime; see `jaxq.forms.registry.find_form`.
        providers: Where onnxruntime runs the calibration: "cpu", "cuda:0", "trt"; those that it lacks are passed over.
        kernels: Quantize kernels of Conv; else they are left alone.
        budget: Formats are chosen, weight by weight, so that they keep to it; None: each has the format that method,
            rules and ``gather`` say.
    """

    source: Path
    target: Path
    method: MethodSpec
    form: str
    exclude: tuple[str, ...]
    cache: Path
    window_bytes: int = 64 << 20
    external_above: int = 1 << 30
    rules: tuple[Rule, ...] = ()
    gather: Gather | None = None
    accuracy_level: int = 4
    providers: tuple[str, ...] = ("cpu",)
    kernels: bool = True
    budget: Budget | None = None

    def format_of(self, site: Site) -> WeightFormat:
        """How a site's weight is held; float8 scales, which are over one number a weight, are float16 in stacks."""
        rule = self._rule(site)
        fmt = self.method.fmt if rule is None else rule.fmt
        if site.has_table:
            assert self.gather is not None
            fmt = self.gather.fmt
        return replace(fmt, scale_dtype=_scales_of(site, fmt)) if isinstance(fmt, IntegerFormat) else fmt

    def formats_of(self, site: Site) -> tuple[WeightFormat, ...]:
        """How a site's weight could be held under a budget of bits: as a rule says, or in any way of its kind."""
        fmt = self.format_of(site)
        if self.budget is None or (not site.has_table and self._rule(site) is not None):
            return (fmt,)
        others = alternatives(self.form, fmt, self.budget.full_range, _scales_of(site, self.budget))
        return tuple(other for other in others if why_unsupported(self.form, other, site) is None)

    def _rule(self, site: Site) -> Rule | None:
        fitting = (rule for rule in self.rules if any(matches(site.weight, p) for p in rule.patterns))
        return next(fitting, None)


def _scales_of(site: Site, wanted: IntegerFormat | Budget) -> str:
    return "float16" if site.count > 1 and wanted.scale_dtype == FLOAT8 else wanted.scale_dtype


def check_job(job: Job, has_data: bool) -> Form:
    """The job's form, if it can be done.

    Raises:
        JaxqError: no form can hold what is asked for, or the method lacks data.
    """
    method = find_method(job.method.name)
    form = find_form(job.form, job.accuracy_level)
    uses = [Use(job.method.fmt), *(Use(rule.fmt, "mixed.block_size") for rule in job.rules)]
    if job.gather is not None:
        uses.append(Use(job.gather.fmt, "gather.block_size", job.gather.positive_axis))
    if job.budget is not None:
        budget, bases = job.budget, [use for use in uses if isinstance(use.fmt, IntegerFormat)]
        for base in bases:
            others = alternatives(job.form, base.fmt, budget.full_range, budget.scale_dtype)
            uses += [replace(base, fmt=other) for other in others]
    check_supported(job.form, uses)
    if (method.scales or method.compensates) and not form.scaled:
        does = "scales them" if method.scales else "chooses other codes than the nearest"
        codes = [name for name, other in FORMS.items() if other.scaled and job.method.fmt.dtype in other.block_sizes]
        raise JaxqError(
            f"form {job.form} keeps the float weights, but {job.method.name} {does}: take form={' or '.join(codes)}"
        )
    if method.needs_data and not has_data:
        raise JaxqError(
            f"method {job.method.name} needs calibration data and there is none: give calib.tokens=<npz file>, or "
            "calib.text=<text> with calib.tokenizer=<tokenizer.json>, or take method=rtn_dq, which needs none"
        )
    if any(isinstance(use.fmt, IntegerFormat) and use.fmt.scale_dtype == FLOAT8 for use in uses):
        return replace(form, opset=max(form.opset, FLOAT8_OPSET))
    return form


def split_supported(job: Job, sites: Sequence[Site]) -> tuple[list[Site], list[Skipped]]:
    """The sites that the job wants and whose weights its form holds, and the others with the reason."""
    reasons = {
        site: _why_not_wanted(job, site) or why_unsupported(job.form, job.format_of(site), site) for site in sites
    }
    held = [site for site, reason in reasons.items() if reason is None]
    return held, [skip(site.weight, reason) for site, reason in reasons.items() if reason is not None]


def _why_not_wanted(job: Job, site: Site) -> str | None:
    return "a kernel of Conv: these are left alone here" if site.kernel and not job.kernels else None


def useless_patterns(job: Job, sites: Sequence[Site]) -> list[str]:
    """Patterns of rules that fit no weight that is quantized: misspelt, perhaps."""
    return [p for p in _patterns(job) if not any(matches(site.weight, p) for site in sites)]


def patterns_of_tables(job: Job, sites: Sequence[Site]) -> list[str]:
    """Patterns of rules that fit tables alone, which rules say nothing about."""
    fits = {p: [site.has_table for site in sites if matches(site.weight, p)] for p in _patterns(job)}
    return [p for p, tables in fits.items() if tables and all(tables)]


def _patterns(job: Job) -> list[str]:
    return [p for rule in job.rules for p in rule.patterns]
