"""What a run would do, and about what it would take: from sizes and a quick probe. No model is written."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from jaxq.calibration.capture import Calibration, WindowRun, capture_moments, naming_weights
from jaxq.calibration.moment_lookup import moments_of
from jaxq.forms.form import Form
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.constants import all_initializers
from jaxq.graph.sites import Group, Site
from jaxq.graph.skipped import Skipped
from jaxq.methods.registry import MethodSpec
from jaxq.numerics.drift import Drift
from jaxq.numerics.moments import Moments, MomentsOf
from jaxq.pipeline.budget import check_budget, losses_of
from jaxq.pipeline.clock import peak_mb
from jaxq.pipeline.group_search import WORKERS
from jaxq.pipeline.job import Job, check_job
from jaxq.pipeline.source import Source, open_source
from jaxq.pipeline.write import write_weights
from jaxq.runtime.batches import Batch
from jaxq.search.group import quantize_group
from jaxq.search.result import GroupResult, Layer

_SMALL = 1024
_SAMPLE = 32 << 20  # bytes that are hashed and written to see how fast that is
_BUDGET = 6.0  # seconds of the search's probe after which no further group is begun
_MOST = 4  # groups of siblings that are looked at: a layer of most models
_RUNS = 3
_WINDOW_COPIES = 4  # two windows are loaded at a time; onnxruntime lays weights out anew
_SEARCH_COPIES = 10  # of a group's weights, in the groups that are searched at a time
_PASSES = 500  # over a weight, in products with one row of the moments that take as long


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        layers: The weights that would be quantized: sizes and formats, without losses; under a budget of bits, which
            chooses others, those without it.
        budget: Bits of a weight, where formats would be chosen.
        skipped: Float weights that would be left alone, with reasons.
        unmatched: Patterns that fit no weight.
        source_bytes: Size of the model's files.
        target_bytes: About the size of the quantized file: what scaling adds, a vector for some groups, is left out.
        quantized_bytes, weight_bytes: Bytes in the source of the weights that would be quantized, and of all.
        bits_per_weight: Mean over quantized weights, scales and zero points included.
        peak_mb: About the most memory, evaluation left out.
        seconds: About how long each phase would take; compilation included, imports left out.
        probed, groups: How many groups of siblings were tried out, of how many.
    """

    layers: tuple[Layer, ...]
    budget: float | None
    skipped: tuple[Skipped, ...]
    unmatched: tuple[str, ...]
    source_bytes: int
    target_bytes: int
    quantized_bytes: int
    weight_bytes: int
    bits_per_weight: float
    peak_mb: float
    seconds: dict[str, float]
    probed: int
    groups: int


def estimate(job: Job, batches: Sequence[Batch] = (), held_out: Sequence[Batch] = ()) -> Estimate:
    """Tries a few groups of siblings out, and works out the rest from sizes.

    Args:
        job: As for `jaxq.pipeline.quantize_model`; moments on disk are not looked for.
        batches: Calibration data.
        held_out: Data that the result would be judged on.

    Raises:
        JaxqError: the job cannot be done.
    """
    form = check_job(job, bool(batches))
    start = time.perf_counter()
    source = open_source(job, form)
    max_bits = check_budget(source.groups, job)
    load = time.perf_counter() - start
    nearest = source.groups[:_MOST]
    with naming_weights(source.groups):
        calibrate, run, moments = _probe_calibration(source, nearest, batches, job)
    calibrated = peak_mb()
    search = _probe_search(nearest, moments, job)
    rest = sum(map(_work, source.groups)) / sum(map(_work, nearest))
    hashing, writing = _speeds(job.source)
    windows = min(job.window_bytes, source.weight_bytes) if batches else 0
    # The second pass is the other model's; sums of drift take the place of moments there, and cost about as much.
    passes = (2 + (job.budget is not None)) if job.method.steps.propagates else 1
    larger = max(map(_nbytes, source.groups)) - search.largest
    peak = max(calibrated + _WINDOW_COPIES * windows / 1e6, peak_mb() + _SEARCH_COPIES * max(0, larger) / 1e6)
    layers, target_bytes = _sizes(source, form, job)
    size, planned = sum(x.size for x in layers), sum(x.nbytes for x in layers)
    bits = 8 * planned / size if job.budget is None or max_bits is None else min(job.budget.bits_per_weight, max_bits)
    target_bytes += int(bits * size / 8) - planned
    seconds = {
        "load": load + source.nbytes / hashing,
        "calibrate": calibrate.once + passes * rest * (calibrate.each + len(batches) * run),
        "choose formats": _choosing(nearest, moments, job) * rest,
        "search": search.once + search.each * sum(_cost(group, bool(batches)) for group in source.groups),
        "write": 2 * target_bytes / writing,
        "evaluate": _evaluation(rest * run * _forward_share(nearest), batches, held_out),
    }
    return Estimate(
        layers=layers,
        budget=None if job.budget is None else job.budget.bits_per_weight,
        skipped=source.skipped,
        unmatched=source.unmatched,
        source_bytes=source.nbytes,
        target_bytes=target_bytes,
        quantized_bytes=source.quantized_bytes,
        weight_bytes=source.weight_bytes,
        bits_per_weight=bits,
        peak_mb=peak,
        seconds=seconds,
        probed=search.groups,
        groups=len(source.groups),
    )


def _choosing(nearest: Sequence[Group], moments: Mapping[str, Moments], job: Job) -> float:
    """Seconds in which the probed groups' formats are compared, where they would be."""
    if job.budget is None:
        return 0.0
    first = _timed(lambda: [losses_of(group, moments_of(group.activations, moments), job) for group in nearest])
    return min(
        first, _timed(lambda: [losses_of(group, moments_of(group.activations, moments), job) for group in nearest])
    )


@dataclass(frozen=True)
class _Seconds:
    """What is taken once, compilation, and what each time."""

    once: float
    each: float


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _work(group: Group) -> int:
    return sum(site.c_in * site.columns for site in group.sites)


def _cost(group: Group, moments: bool) -> float:
    """What the search of a group takes, in steps: products with the moments, and passes over the weights."""
    return float(sum(site.c_in * site.columns * ((site.c_in if moments else 0) + _PASSES) for site in group.sites))


def _forward_share(groups: Sequence[Group]) -> float:
    """The share of the forward pass in a calibration, which sums moments too (five eighths of c_in^2 a token)."""
    forward = sum(map(_work, groups))
    activations = {activation: group.sites[0].c_in for group in groups for activation in group.activations}
    return forward / (forward + sum(0.625 * c_in * c_in for c_in in activations.values()))


def _nbytes(group: Group) -> int:
    return sum(site.weight.const_value.nbytes for site in group.sites if site.weight.const_value is not None)


def _probe_calibration(
    source: Source, probe: Sequence[Group], batches: Sequence[Batch], job: Job
) -> tuple[_Seconds, float, dict[str, Moments]]:
    """Seconds of the probed groups' calibration without batches, those of each batch, and the groups' moments."""
    moments: dict[str, Moments] = {}
    wanted = list(dict.fromkeys(activation for group in probe for activation in group.activations))
    if not batches or not wanted:
        return _Seconds(0.0, 0.0), 0.0, moments

    def capture(count: int) -> list[WindowRun]:
        data = Calibration([batches[0]] * count, job.window_bytes, job.providers)
        return capture_moments(source.model, wanted, data, lambda _, key, new: moments.update({key: new}))

    cold = _timed(lambda: capture(1))
    start = time.perf_counter()
    runs = capture(_RUNS)
    warm = time.perf_counter() - start
    run = sum(r.seconds for r in runs) / _RUNS
    load = max(0.0, warm - _RUNS * run)
    return _Seconds(max(0.0, cold - load - run), load), run, moments


@dataclass(frozen=True)
class _Search:
    """Seconds of compilation and for each step of `_cost`; the greatest bytes of a group that was tried; how many."""

    once: float
    each: float
    largest: int
    groups: int


def _probe_search(nearest: Sequence[Group], moments: Mapping[str, Moments], job: Job) -> _Search:
    """Searches the cheaper groups, each once and then as many times as are searched at a time, within the budget."""
    needs = job.method.steps.needs_data
    pairs = [(group, moments_of(group.activations, moments)) for group in nearest]
    able = [(group, found) for group, found in pairs if found is not None or not needs] or [(nearest[0], None)]
    once = warm = cost = 0.0
    largest = count = 0
    start = time.perf_counter()
    for group, found in sorted(able, key=lambda pair: _cost(pair[0], bool(moments))):
        if count and time.perf_counter() - start > _BUDGET:
            break
        spec = job.method if found is not None or not needs else replace(job.method, name="rtn_dq")
        cold, each = _search_times(group, found, spec, job)
        once, warm, cost = once + max(0.0, cold - each), warm + each, cost + _cost(group, bool(moments))
        largest, count = max(largest, _nbytes(group)), count + 1
    return _Search(once, warm / cost, largest, count)


def _search_times(group: Group, found: MomentsOf | None, spec: MethodSpec, job: Job) -> tuple[float, float]:
    """Seconds of the first search of a group, and of one of several at a time."""
    formats = [job.format_of(site) for site in group.sites]

    drift = _drift(group, found, spec)

    def search(_: int) -> None:
        quantize_group(group, formats, found, spec, drift)

    cold = _timed(lambda: search(0))
    if cold > _BUDGET:  # one more, to tell compilation from work
        return cold, _timed(lambda: search(0))
    with ThreadPoolExecutor(WORKERS) as pool:
        return cold, _timed(lambda: list(pool.map(search, range(WORKERS)))) / WORKERS


def _drift(group: Group, found: MomentsOf | None, spec: MethodSpec) -> Drift | None:
    """Something to make up for, where the method does that: it costs as much whatever the numbers are."""
    if found is None or group.count > 1 or not spec.steps.propagates:
        return None
    return Drift(jnp.zeros_like(found(0).h), (None,) * len(group.sites))


def _speeds(path: Path) -> tuple[float, float]:
    """Bytes a second that are hashed, and that are written to the temporary folder."""
    with path.open("rb") as file:
        sample = file.read(_SAMPLE)
    sample = sample * max(1, (1 << 20) // max(1, len(sample)))
    hashing = _timed(lambda: hashlib.sha256(sample))
    with tempfile.TemporaryFile() as file:
        writing = _timed(lambda: (file.write(sample), file.flush()))
    return len(sample) / hashing, len(sample) / writing


def _sizes(source: Source, form: Form, job: Job) -> tuple[tuple[Layer, ...], int]:
    """Layers and the file's size, from a model that is rewritten but never saved."""
    results = [_planned(group, job) for group in source.groups]
    layers = write_weights(source.model, results, form)
    held = 0
    for value in all_initializers(source.model):
        tensor = value.const_value
        if tensor is not None and (tensor.nbytes > _SMALL or isinstance(tensor, ir.LazyTensor)):
            held += tensor.nbytes
            shape = ir.Shape(tensor.shape.numpy())
            name = str(value.name)
            value.const_value = ir.ExternalTensor("", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    proto = ir.to_proto(source.model)
    for tensor in proto.graph.initializer:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return layers, held + proto.ByteSize()


def _planned(group: Group, job: Job) -> GroupResult:
    weights = tuple(_planned_weight(site, job) for site in group.sites)
    layers = tuple(Layer.planned(site, weight) for site, weight in zip(group.sites, weights, strict=True))
    return GroupResult(group, weights, layers, np.ones(group.sites[0].c_in, np.float32), False, 0)


def _planned_weight(site: Site, job: Job) -> StoredWeight:
    dtype = site.weight.dtype
    assert dtype is not None
    fmt = job.format_of(site).of_weights(str(np.dtype(dtype.numpy())))
    return StoredWeight.planned((site.c_in, site.columns), fmt)


def _evaluation(forward: float, batches: Sequence[Batch], held_out: Sequence[Batch]) -> float:
    """The float model and two settings of the quantized one, at the calibration's speed; none without calibration."""
    if not held_out or not forward:
        return 0.0
    return 3 * forward * _tokens(held_out) / _tokens(batches[:1])


def _tokens(batches: Sequence[Batch]) -> int:
    """The greatest first dimensions of the inputs: tokens, or pixels, or whatever is many."""
    return sum(max(int(np.prod(a.shape[:2])) for a in batch.feeds.values()) for batch in batches)
