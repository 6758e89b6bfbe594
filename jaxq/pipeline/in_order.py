"""Calibrate and quantize in one go: each weight on the activations of the model whose earlier weights are quantized.

The float model and the quantized one run side by side, window by window, each once over the data. A window ends before
the products of the weights that are searched on its activations.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import onnx_ir as ir

from jaxq.calibration.capture import WindowRun, checked
from jaxq.calibration.collect import Array, Collector, DriftCollector
from jaxq.calibration.forward import Runner, SessionOptions, forward_twice, plan_hash
from jaxq.calibration.spool import Spool
from jaxq.calibration.windows import Window, plan_windows
from jaxq.graph.activations import Activation
from jaxq.graph.readers import is_table
from jaxq.graph.residuals import residual_of
from jaxq.graph.sites import Group
from jaxq.numerics.drift import Drift
from jaxq.numerics.moments import Moments, MomentsOf, mean_moments
from jaxq.pipeline.clock import Clock
from jaxq.progress import Progress, silent
from jaxq.runtime.batches import Batch, check_feeds
from jaxq.runtime.session import to_jax
from jaxq.search.result import GroupResult, effective_weight

Quantize = Callable[[Group, MomentsOf | None, Drift | None], GroupResult]
"""Quantizes a group; what a stopped run left of it may stand in."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a model is run on, and how.

    Attributes:
        batches: Data, at least one batch.
        folder: Keeps the values between windows, for a run that goes on; None leaves nothing.
        key: Whose work that is.
        window_bytes: Weight bytes a window.
        providers: Where onnxruntime runs it.
    """

    batches: Sequence[Batch]
    folder: Path | None = None
    key: str = ""
    window_bytes: int = 64 << 20
    providers: Sequence[str] = ("cpu",)


def quantize_in_order(
    model: ir.Model,
    groups: Sequence[Group],
    data: Calibration,
    quantize: Quantize,
    is_kept: Callable[[Group], bool],
    pool: Executor,
    clock: Clock,
    progress: Progress = silent,
) -> tuple[list[GroupResult], list[WindowRun]]:
    """Quantizes each group as soon as the activation that it reads is known.

    Args:
        model: A model that went through `jaxq.graph.prepare.prepare`; not changed.
        groups: All groups that are to be quantized.
        data: Calibration data.
        quantize: Called once for each group.
        is_kept: Whether a stopped run left the group's result: windows before it need not run again.
        pool: Runs the groups of a window.
        clock: Has a phase "search" afterwards; all else is the caller's.
        progress: Told of each batch of each window.

    Returns:
        A result for each group, in their order, and what the windows did that ran.

    Raises:
        JaxqError: onnxruntime cannot load or run a window, or an activation is not finite.
    """
    check_feeds(model, data.batches)
    work = _Work(groups, quantize, pool, clock)
    windows = _plan(model, groups, data.window_bytes)
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        root = Path(folder) if data.folder is None else data.folder
        spools = (Spool(root / "float", data.batches, data.key), Spool(root / "quantized", data.batches, data.key))
        done = _done(windows, groups, spools, is_kept)
        work.know(
            {r: _of_input(r, data.batches) for g in groups for r in g.activations if r.value.is_graph_input()}, {}
        )
        captured = {value for window in windows[:done] for value in window.captures}
        work.finish([g for g in work.left() if {r.value for r in g.activations} <= captured])
        advance = progress("calibrate and search", len(data.batches) * (len(windows) - done))
        how = SessionOptions(tuple(data.providers))
        pairs = forward_twice(model, windows, spools, how, done, work.replaced)
        runs = [_run_window(pair, work, advance) for pair in pairs]
    return [work.results[group] for group in groups], runs


def _plan(model: ir.Model, groups: Sequence[Group], window_bytes: int) -> list[Window]:
    """Windows up to each activation, and to the sums behind products, so that what these add to is kept so long."""
    sites = [site for group in groups for site in group.sites]
    sums = [found.sum for site in sites if (found := residual_of(site)) is not None]
    wanted = dict.fromkeys([*(r.value for group in groups for r in group.activations), *sums])
    steps = {node for site in sites for node in site.nodes if node.graph is model.graph and not is_table(node)}
    return plan_windows(model.graph, list(wanted), window_bytes, steps)


def _done(
    windows: Sequence[Window],
    groups: Sequence[Group],
    spools: tuple[Spool, Spool],
    is_kept: Callable[[Group], bool],
) -> int:
    """Windows that need not run again: both models left their values, and all groups before have their results."""
    first, second = (spool.resume(plan_hash(windows)) for spool in spools)
    captured = {value for window in windows[:first] for value in window.captures}
    before = [g for g in groups if {r.value for r in g.activations} <= captured]
    if first == second and all(map(is_kept, before)):
        return first
    for spool in spools:
        spool.forget()
    return 0


class _Work:
    """The groups' results so far."""

    def __init__(self, groups: Sequence[Group], quantize: Quantize, pool: Executor, clock: Clock) -> None:
        self.results: dict[Group, GroupResult] = {}
        self._groups, self._quantize, self._pool, self._clock = groups, quantize, pool, clock
        self._moments: dict[Activation, Mapping[str, Moments]] = {}
        self._places: dict[str, tuple[Group, int]] = {}
        self.finish([group for group in groups if not group.activations])

    def left(self) -> list[Group]:
        """Groups without a result."""
        return [group for group in self._groups if group not in self.results]

    def know(self, moments: Mapping[Activation, Mapping[str, Moments]], drifts: Mapping[Group, Drift | None]) -> None:
        """Quantizes the groups all of whose moments are known now."""
        self._moments |= moments
        self.finish([group for group in self.left() if set(group.activations) <= set(self._moments)], drifts)
        still = {activation for group in self.left() for activation in group.activations}
        self._moments = {activation: found for activation, found in self._moments.items() if activation in still}

    def finish(self, groups: Sequence[Group], drifts: Mapping[Group, Drift | None] | None = None) -> None:
        """Quantizes groups with the moments that are known."""
        jobs = [(group, self._moments_of(group), (drifts or {}).get(group)) for group in groups]
        with self._clock.phase("search"):
            results = list(self._pool.map(lambda job: self._quantize(*job), jobs))
        for group, result in zip(groups, results, strict=True):
            self.results[group] = result
            self._places |= {str(site.weight.name): (group, i) for i, site in enumerate(group.sites)}

    def replaced(self, name: str) -> np.ndarray | None:
        """What the quantized model has in the place of an initializer."""
        if name not in self._places:
            return None
        group, index = self._places[name]
        return effective_weight(self.results[group], index)

    def _moments_of(self, group: Group) -> MomentsOf | None:
        if not group.activations or any(activation not in self._moments for activation in group.activations):
            return None
        found = {activation: self._moments[activation] for activation in group.activations}
        return lambda index: mean_moments([m.get(r.shared_key) or m[r.keys[index]] for r, m in found.items()])


def _run_window(pair: tuple[Runner, Runner], work: _Work, advance: Callable[[], None]) -> WindowRun:
    start = time.perf_counter()
    window, batches = pair[0].window, pair[0].spool.batches
    activations = dict.fromkeys(r for g in work.left() for r in g.activations if r.value in window.captures)
    collectors = [Collector(activation) for activation in activations]
    drifting = {g: _Drifting(g) for g in work.left() if _can_drift(g) and g.activations[0] in activations}
    unmasked: set[str] = set()
    for i, batch in enumerate(batches):
        values = [_Values(runner, i) for runner in pair]
        for collector in collectors:
            name = str(collector.activation.value.name)
            if not collector.add(values[1].get(name), batch.keep):
                unmasked.add(name)
        for drift in drifting.values():
            drift.add(values[1], values[0], batch)
        advance()
    moments = {c.activation: {key: checked(c.activation.name, m) for key, m in c.finish()} for c in collectors}
    drifts = {group: jax.block_until_ready(drift.collector.finish()) for group, drift in drifting.items()}
    seconds = time.perf_counter() - start
    work.know(moments, drifts)
    return WindowRun(
        len(window.nodes), window.weight_bytes, len(window.live), len(batches), seconds, tuple(sorted(unmasked))
    )


def _can_drift(group: Group) -> bool:
    """The group's weights multiply one activation as it is."""
    return len(group.activations) == 1 and group.count == 1 and group.activations[0].patches is None


class _Values:
    """What one of the models computed of a batch."""

    def __init__(self, runner: Runner, batch: int) -> None:
        self._found, self._runner, self._batch = runner.run(batch), runner, batch

    def has(self, name: str) -> bool:
        """Whether the value is computed already, and kept as long as it is read."""
        return name in self._found or name in self._runner.spool

    def get(self, name: str) -> Array:
        """A value of this window, or an earlier one that waits for later windows."""
        found = self._found.get(name)
        return self._runner.spool.get(self._batch, name) if found is None else to_jax(found)


class _Drifting:
    """Collects how far a group's activation has drifted, and what its products are added to."""

    def __init__(self, group: Group) -> None:
        self._activation = str(group.activations[0].value.name)
        found = [residual_of(site) for site in group.sites]
        self._residuals = [None if r is None else str(r.other.name) for r in found]
        self.collector = DriftCollector([site.c_out for site in group.sites])

    def add(self, quantized: _Values, exact: _Values, batch: Batch) -> None:
        """Adds a batch."""
        pairs = [None if name is None else _both(quantized, exact, name) for name in self._residuals]
        x, x_float = quantized.get(self._activation), exact.get(self._activation)
        self.collector.add(x, x_float, pairs, batch.keep)


def _both(quantized: _Values, exact: _Values, name: str) -> tuple[Array, Array] | None:
    """A value in both models; None where it is computed only after what is added to it."""
    return (quantized.get(name), exact.get(name)) if quantized.has(name) and exact.has(name) else None


def _of_input(activation: Activation, batches: Sequence[Batch]) -> Mapping[str, Moments]:
    """The moments of an input of the model: quantized weights change nothing about it."""
    collector = Collector(activation)
    for batch in batches:
        collector.add(np.asarray(batch.feeds[str(activation.value.name)]), batch.keep)
    return {key: checked(activation.name, moments) for key, moments in collector.finish()}
