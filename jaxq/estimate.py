"""What a run would do, and about what it would take: from sizes and a quick probe. No model is written."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from jaxq.batches import Batch
from jaxq.capture import WindowRun, capture_moments
from jaxq.formats import IntegerFormat, Nvfp4Format
from jaxq.forms import Form
from jaxq.forms.weight import StoredWeight
from jaxq.graph import Declined, Group, Site
from jaxq.groups import GroupResult, MomentsOf, quantize_group
from jaxq.job import Job, check_job
from jaxq.methods import find_method
from jaxq.pipeline import WORKERS
from jaxq.results import Layer, peak_mb
from jaxq.rewrite import write_weights
from jaxq.source import Source, open_source
from jaxq.statistics import Moments

_SMALL = 1024
_SAMPLE = 32 << 20  # bytes that are hashed and written to see how fast that is
_SHARE = 0.04  # of the weights that the probe should cover,
_LEAST, _MOST = 4, 8  # in so many groups of siblings
_RUNS = 3


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        layers: The weights that would be quantized: sizes and formats, without losses.
        declined: Float weights that would be left alone, with reasons.
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
    declined: tuple[Declined, ...]
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
    load = time.perf_counter() - start
    base = peak_mb()
    probe = _choose(source.groups)
    rest = sum(map(_work, source.groups)) / sum(map(_work, probe))
    calibrate, run, moments = _probe_calibration(source, probe, batches, job)
    search = _probe_search(probe, moments, job)
    hashing, writing = _speeds(job.source)
    largest = max(map(_nbytes, source.groups)) / max(map(_nbytes, probe))
    peak = base + (peak_mb() - base) * max(1.0, largest)
    layers, target_bytes = _sizes(source, form, job)
    seconds = {
        "load": load + source.nbytes / hashing,
        "calibrate": calibrate.once + rest * (calibrate.each + len(batches) * run),
        "search": search.once + rest * search.each,
        "write": 2 * target_bytes / writing,
        "evaluate": _evaluation(source, rest, run, batches, held_out),
    }
    return Estimate(
        layers=layers,
        declined=source.declined,
        unmatched=source.unmatched,
        source_bytes=source.nbytes,
        target_bytes=target_bytes,
        quantized_bytes=source.quantized_bytes,
        weight_bytes=source.weight_bytes,
        bits_per_weight=8 * sum(x.nbytes for x in layers) / sum(x.size for x in layers),
        peak_mb=peak,
        seconds=seconds,
        probed=len(probe),
        groups=len(source.groups),
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


def _twice(work: Callable[[], object]) -> _Seconds:
    cold, warm = _timed(work), _timed(work)
    return _Seconds(max(0.0, cold - warm), warm)


def _choose(groups: Sequence[Group]) -> list[Group]:
    """The first groups, a layer or so: what comes after has the same shapes in most models."""
    total = sum(map(_work, groups))
    chosen: list[Group] = []
    for group in groups:
        enough = len(chosen) >= _LEAST and sum(map(_work, chosen)) >= _SHARE * total
        if enough or len(chosen) >= _MOST:
            break
        chosen.append(group)
    return chosen


def _work(group: Group) -> int:
    return sum(site.c_in * site.columns for site in group.sites)


def _nbytes(group: Group) -> int:
    return sum(site.weight.const_value.nbytes for site in group.sites if site.weight.const_value is not None)


def _probe_calibration(
    source: Source, probe: Sequence[Group], batches: Sequence[Batch], job: Job
) -> tuple[_Seconds, float, dict[str, Moments]]:
    """Seconds of the probed groups' calibration without batches, those of each batch, and the groups' moments."""
    moments: dict[str, Moments] = {}
    wanted = list(dict.fromkeys(reading for group in probe for reading in group.readings))
    if not batches or not wanted:
        return _Seconds(0.0, 0.0), 0.0, moments

    def capture(count: int) -> list[WindowRun]:
        some = [batches[0]] * count
        return capture_moments(source.model, wanted, some, moments.__setitem__, job.window_bytes, job.providers)

    cold = _timed(lambda: capture(1))
    start = time.perf_counter()
    runs = capture(_RUNS)
    warm = time.perf_counter() - start
    run = sum(r.seconds for r in runs) / _RUNS
    load = max(0.0, warm - _RUNS * run)
    return _Seconds(max(0.0, cold - load - run), load), run, moments


def _probe_search(probe: Sequence[Group], moments: dict[str, Moments], job: Job) -> _Seconds:
    def quantize(group: Group) -> None:
        formats = [job.format_of(site) for site in group.sites]
        found = _moments(group, moments)
        spec = job.method
        if find_method(spec.name).needs_data and found is None:
            return
        quantize_group(group, formats, found, spec)

    def search() -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(quantize, probe))

    return _twice(search)


def _moments(group: Group, found: Mapping[str, Moments]) -> MomentsOf | None:
    """Those of what a group's weights multiply, where that is one activation."""
    if len(group.readings) != 1:
        return None
    (reading,) = group.readings
    keys = [reading.shared_key] * reading.count if reading.shared_key in found else reading.keys
    return (lambda index: found[keys[index]]) if all(key in found for key in keys) else None


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
    for value in (v for graph in source.model.graphs() for v in graph.initializers.values()):
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
    layers = tuple(_planned_layer(site, weight) for site, weight in zip(group.sites, weights, strict=True))
    return GroupResult(group, weights, layers, np.ones(group.sites[0].c_in, np.float32), False, 0)


def _planned_weight(site: Site, job: Job) -> StoredWeight:
    dtype = site.weight.dtype
    assert dtype is not None
    fmt = job.format_of(site).with_scale_dtype(str(np.dtype(dtype.numpy())))
    zero_points = isinstance(fmt, IntegerFormat) and fmt.use_zero_point
    s2 = _never if isinstance(fmt, Nvfp4Format) else None
    return StoredWeight(_never, _never, _never if zero_points else None, s2, (site.c_in, site.columns), fmt)


def _never() -> np.ndarray:
    raise AssertionError("a planned weight has no values")


def _planned_layer(site: Site, weight: StoredWeight) -> Layer:
    return Layer(
        name=site.name,
        nodes=tuple(str(node.name) for node in site.nodes),
        activation=str(site.activations[0].name) if site.activations else site.name,
        c_in=site.c_in,
        c_out=site.c_out,
        dtype=weight.fmt.dtype,
        block_size=weight.fmt.block_size,
        nbytes=weight.nbytes,
        loss=None,
        loss_rtn=None,
        relative_output_error=None,
        sqnr_db=None,
        alpha=None,
        fold="",
        clip_mean=1.0,
        clip_min=1.0,
        clip_share=0.0,
        matrices=site.count,
    )


def _evaluation(source: Source, rest: float, run: float, batches: Sequence[Batch], held_out: Sequence[Batch]) -> float:
    """The float model and two settings of the quantized one, at the calibration's speed; none without calibration."""
    if not held_out or not run:
        return 0.0
    share = _tokens(held_out) / _tokens(batches[:1])
    return 3 * rest * run * share


def _tokens(batches: Sequence[Batch]) -> int:
    """The greatest first dimensions of the inputs: tokens, or pixels, or whatever is many."""
    return sum(max(int(np.prod(a.shape[:2])) for a in batch.feeds.values()) for batch in batches)
