"""Quick measurements on this machine, from which a dry run extrapolates."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp

from jaxq.calibration.capture import Calibration, WindowRun, capture_moments
from jaxq.calibration.moment_lookup import moments_of
from jaxq.graph.sites import Group
from jaxq.methods.registry import MethodSpec
from jaxq.numerics.drift import Drift
from jaxq.numerics.moments import Moments, MomentsOf
from jaxq.pipeline.budget import losses_of
from jaxq.pipeline.group_search import WORKERS
from jaxq.pipeline.job import Job
from jaxq.pipeline.source import Source
from jaxq.runtime.batches import Batch
from jaxq.search.group import quantize_group

_SAMPLE_BYTES = 32 << 20
"""Bytes that are hashed and written to measure how fast that is."""

_PROBE_SECONDS = 6.0
"""After these no further group is probed."""

_PROBE_RUNS = 3
"""Batches of the second calibration."""

_PASSES = 500
"""Products with one row of the moments that take as long as the passes over a weight."""


@dataclass(frozen=True)
class OnceAndEach:
    """Seconds that a step takes once, for compilation, and each time that it runs."""

    once: float
    each_time: float


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def group_size(group: Group) -> int:
    """Elements of a group's weights."""
    return sum(site.c_in * site.columns for site in group.sites)


def search_cost(group: Group, moments: bool) -> float:
    """Relative cost of a group's search: multiply-adds with the moments, and passes over the weights."""
    return float(sum(site.c_in * site.columns * ((site.c_in if moments else 0) + _PASSES) for site in group.sites))


def forward_share(groups: Sequence[Group]) -> float:
    """The forward pass's share of a calibration. The rest sums moments: five eighths of c_in^2 for each token."""
    forward = sum(map(group_size, groups))
    activations = {activation: group.sites[0].c_in for group in groups for activation in group.activations}
    return forward / (forward + sum(0.625 * c_in * c_in for c_in in activations.values()))


def group_bytes(group: Group) -> int:
    """Bytes of a group's weights in the source."""
    return sum(site.weight.const_value.nbytes for site in group.sites if site.weight.const_value is not None)


def probe_calibration(
    source: Source, probe: Sequence[Group], batches: Sequence[Batch], job: Job
) -> tuple[OnceAndEach, float, dict[str, Moments]]:
    """Calibrates the probed groups on one batch.

    Returns:
        Seconds without batches, seconds of each batch, and the groups' moments by key.
    """
    moments: dict[str, Moments] = {}
    activations = list(dict.fromkeys(activation for group in probe for activation in group.activations))
    if not batches or not activations:
        return OnceAndEach(0.0, 0.0), 0.0, moments

    def capture(count: int) -> list[WindowRun]:
        data = Calibration([batches[0]] * count, job.window_bytes, job.providers)
        return capture_moments(source.model, activations, data, lambda _, key, new: moments.update({key: new}))

    cold = timed(lambda: capture(1))
    start = time.perf_counter()
    runs = capture(_PROBE_RUNS)
    warm = time.perf_counter() - start
    run = sum(r.seconds for r in runs) / _PROBE_RUNS
    load = max(0.0, warm - _PROBE_RUNS * run)
    return OnceAndEach(max(0.0, cold - load - run), load), run, moments


@dataclass(frozen=True)
class SearchProbe:
    """Results of `probe_search`.

    Attributes:
        once: Seconds of compilation.
        per_unit: Seconds for each unit of `search_cost`.
        largest: Bytes of the largest group that was probed.
        groups: Number of groups that were probed.
    """

    once: float
    per_unit: float
    largest: int
    groups: int


def probe_search(nearest: Sequence[Group], moments: Mapping[str, Moments], job: Job) -> SearchProbe:
    """Searches the cheaper groups, each first once and then as many at a time as a run does, for some seconds."""
    needs_data = job.method.steps.needs_data
    pairs = [(group, moments_of(group.activations, moments)) for group in nearest]
    # Groups without moments fall back to plain rounding: they are probed only if there is no other.
    searchable = [(group, moments) for group, moments in pairs if moments is not None or not needs_data]
    searchable = searchable or [(nearest[0], None)]
    once = warm = cost = 0.0
    largest = count = 0
    start = time.perf_counter()
    for group, group_moments in sorted(searchable, key=lambda pair: search_cost(pair[0], bool(moments))):
        if count and time.perf_counter() - start > _PROBE_SECONDS:
            break
        spec = job.method if group_moments is not None or not needs_data else replace(job.method, name="rtn_dq")
        cold, warm_seconds = _search_times(group, group_moments, spec, job)
        once, warm, cost = (
            once + max(0.0, cold - warm_seconds),
            warm + warm_seconds,
            cost + search_cost(group, bool(moments)),
        )
        largest, count = max(largest, group_bytes(group)), count + 1
    return SearchProbe(once, warm / cost, largest, count)


def _search_times(group: Group, moments: MomentsOf | None, spec: MethodSpec, job: Job) -> tuple[float, float]:
    """Seconds of the first search of a group, and of one of several at a time."""
    formats = [job.format_of(site) for site in group.sites]

    drift = _no_drift(group, moments, spec)

    def search(_: int) -> None:
        quantize_group(group, formats, moments, spec, drift)

    cold = timed(lambda: search(0))
    if cold > _PROBE_SECONDS:  # slow: one more call tells compilation from work
        return cold, timed(lambda: search(0))
    with ThreadPoolExecutor(WORKERS) as pool:
        return cold, timed(lambda: list(pool.map(search, range(WORKERS)))) / WORKERS


def _no_drift(group: Group, moments: MomentsOf | None, spec: MethodSpec) -> Drift | None:
    """A drift of zero, for methods that correct drift: it costs as much to correct as any other."""
    if moments is None or group.count > 1 or not spec.steps.propagates:
        return None
    return Drift(jnp.zeros_like(moments(0).h), (None,) * len(group.sites))


def disk_speeds(path: Path) -> tuple[float, float]:
    """Bytes per second of hashing, and of writing to the temporary folder."""
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    sample = sample * max(1, (1 << 20) // max(1, len(sample)))
    hashing = timed(lambda: hashlib.sha256(sample))
    with tempfile.TemporaryFile() as file:
        writing = timed(lambda: (file.write(sample), file.flush()))
    return len(sample) / hashing, len(sample) / writing


def probe_formats(nearest: Sequence[Group], moments: Mapping[str, Moments], job: Job) -> float:
    """Seconds to compare the formats of the probed groups; 0 without a budget."""
    if job.budget is None:
        return 0.0
    first = timed(lambda: [losses_of(group, moments_of(group.activations, moments), job) for group in nearest])
    return min(
        first, timed(lambda: [losses_of(group, moments_of(group.activations, moments), job) for group in nearest])
    )
