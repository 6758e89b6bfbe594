"""Estimate the size, memory and seconds of a run, from sizes and quick probes. No model is written."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from jaxq.calibration.capture import naming_weights
from jaxq.forms.form import Form
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.constants import all_initializers
from jaxq.graph.sites import Group, Site
from jaxq.graph.skipped import Skipped
from jaxq.pipeline.budget import check_budget
from jaxq.pipeline.clock import peak_mb
from jaxq.pipeline.job import Job, check_job
from jaxq.pipeline.probes import (
    disk_speeds,
    forward_share,
    group_bytes,
    group_size,
    probe_calibration,
    probe_formats,
    probe_search,
    search_cost,
)
from jaxq.pipeline.source import Source, open_source
from jaxq.pipeline.write import write_weights
from jaxq.runtime.batches import Batch
from jaxq.search.result import GroupResult, Layer

_SMALL_BYTES = 1024
"""Larger tensors are left out of the protobuf whose size is measured."""

_PROBED_GROUPS = 4
"""Sibling groups that are probed: those of a layer in most models."""

_WINDOW_COPIES = 4
"""Copies of a window's weights in memory: two windows are loaded, and onnxruntime stores weights in its own layout."""

_SEARCH_COPIES = 10
"""Copies of a group's weights in memory, in all groups that are searched at a time."""


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run.

    Attributes:
        layers: Weights that would be quantized: sizes and formats, without losses. A budget of bits would choose other
            formats than these.
        budget: The budget of bits per weight, or None.
        skipped: Float weights that would be skipped, with reasons.
        unmatched: Patterns that match no weight.
        source_bytes: Size of the model's files.
        target_bytes: About the size of the quantized file, without the vectors that AWQ scaling adds to some groups.
        quantized_source_bytes, weight_bytes: Bytes in the source of the weights that would be quantized, and of all.
        bits_per_weight: Mean over quantized weights, scales and zero points included.
        peak_mb: About the peak memory in MB (10^6 bytes), without the evaluation.
        seconds: About the seconds of each phase, with compilation, without imports.
        probed, groups: Number of sibling groups that were probed, and of all.
    """

    layers: tuple[Layer, ...]
    budget: float | None
    skipped: tuple[Skipped, ...]
    unmatched: tuple[str, ...]
    source_bytes: int
    target_bytes: int
    quantized_source_bytes: int
    weight_bytes: int
    bits_per_weight: float
    peak_mb: float
    seconds: dict[str, float]
    probed: int
    groups: int


def estimate(job: Job, batches: Sequence[Batch] = (), held_out: Sequence[Batch] = ()) -> Estimate:
    """Probes a few sibling groups, and extrapolates to the others by their sizes.

    Args:
        job: As for `jaxq.pipeline.quantize_model`; moments on disk are not used.
        batches: Calibration data.
        held_out: Held-out data of the evaluation.

    Raises:
        JaxqError: the job cannot be done.
    """
    form = check_job(job, bool(batches))
    start = time.perf_counter()
    source = open_source(job, form)
    max_bits = check_budget(source.groups, job)
    load = time.perf_counter() - start
    nearest = source.groups[:_PROBED_GROUPS]
    with naming_weights(source.groups):
        calibrate, run, moments = probe_calibration(source, nearest, batches, job)
    calibrated = peak_mb()
    search = probe_search(nearest, moments, job)
    rest = sum(map(group_size, source.groups)) / sum(map(group_size, nearest))
    hashing, writing = disk_speeds(job.source)
    windows = min(job.window_bytes, source.weight_bytes) if batches else 0
    # Propagation runs a second model, where sums of drift cost about as much as moments; a budget needs one pass more.
    passes = (2 + (job.budget is not None)) if job.method.steps.propagates else 1
    larger = max(map(group_bytes, source.groups)) - search.largest
    peak = max(calibrated + _WINDOW_COPIES * windows / 1e6, peak_mb() + _SEARCH_COPIES * max(0, larger) / 1e6)
    layers, target_bytes, bits = _planned_file(source, form, job, max_bits)
    seconds = {
        "load": load + source.nbytes / hashing,
        "calibrate": calibrate.once + passes * rest * (calibrate.each_time + len(batches) * run),
        "choose formats": probe_formats(nearest, moments, job) * rest,
        "search": search.once + search.per_unit * sum(search_cost(group, bool(batches)) for group in source.groups),
        "write": 2 * target_bytes / writing,
        "evaluate": _evaluation(rest * run * forward_share(nearest), batches, held_out),
    }
    return Estimate(
        layers=layers,
        budget=None if job.budget is None else job.budget.bits_per_weight,
        skipped=source.skipped,
        unmatched=source.unmatched,
        source_bytes=source.nbytes,
        target_bytes=target_bytes,
        quantized_source_bytes=source.quantized_source_bytes,
        weight_bytes=source.weight_bytes,
        bits_per_weight=bits,
        peak_mb=peak,
        seconds=seconds,
        probed=search.groups,
        groups=len(source.groups),
    )


def planned_file_size(job: Job, has_data: bool) -> tuple[tuple[Skipped, ...], int]:
    """Skipped weights of a job, and about the bytes of the file that it would write; nothing is probed.

    Args:
        job: As for `jaxq.pipeline.quantize_model`.
        has_data: There is calibration data.

    Raises:
        JaxqError: the job cannot be done.
    """
    form = check_job(job, has_data)
    source = open_source(job, form)
    _, target_bytes, _ = _planned_file(source, form, job, check_budget(source.groups, job))
    return source.skipped, target_bytes


def _planned_file(source: Source, form: Form, job: Job, max_bits: float | None) -> tuple[tuple[Layer, ...], int, float]:
    """Layers, bytes of the file and bits per weight: those of the budget where there is one."""
    layers, target_bytes = _sizes(source, form, job)
    size, planned = sum(x.size for x in layers), sum(x.nbytes for x in layers)
    bits = 8 * planned / size if job.budget is None or max_bits is None else min(job.budget.bits_per_weight, max_bits)
    return layers, target_bytes + int(bits * size / 8) - planned, bits


def _sizes(source: Source, form: Form, job: Job) -> tuple[tuple[Layer, ...], int]:
    """Layers, and the size of the file: the model is rewritten in memory but never saved."""
    results = [_planned(group, job) for group in source.groups]
    layers = write_weights(source.model, results, form)
    tensor_bytes = 0
    for value in all_initializers(source.model):
        tensor = value.const_value
        if tensor is not None and (tensor.nbytes > _SMALL_BYTES or isinstance(tensor, ir.LazyTensor)):
            tensor_bytes += tensor.nbytes
            shape = ir.Shape(tensor.shape.numpy())
            name = str(value.name)
            value.const_value = ir.ExternalTensor("", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    proto = ir.to_proto(source.model)
    for tensor in proto.graph.initializer:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return layers, tensor_bytes + proto.ByteSize()


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
    """Seconds of the evaluation: three forward passes at the speed of the calibration; 0 without calibration."""
    if not held_out or not forward:
        return 0.0
    return 3 * forward * _tokens(held_out) / _tokens(batches[:1])


def _tokens(batches: Sequence[Batch]) -> int:
    """Products of the first two dimensions of the inputs, the largest of each batch: tokens, or images and channels."""
    return sum(max(int(np.prod(a.shape[:2])) for a in batch.feeds.values()) for batch in batches)
