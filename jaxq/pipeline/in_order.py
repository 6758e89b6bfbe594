"""Calibrate and quantize in one go: each weight on the activations of the model whose earlier weights are quantized.

The float model and the quantized one run side by side, window by window, each once over the data. A window ends before
the products of the weights that are searched on its activations.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import onnx_ir as ir

from jaxq.calibration.capture import (
    BatchValues,
    Calibration,
    WindowRun,
    finished_windows,
    input_moments,
    run_window,
)
from jaxq.calibration.collect import Array, DriftCollector
from jaxq.calibration.forward import ModelVariant, Runner, forward
from jaxq.calibration.moment_lookup import has_moments, moments_of
from jaxq.calibration.windows import Window, plan_windows
from jaxq.graph.activations import Activation
from jaxq.graph.readers import is_table
from jaxq.graph.residuals import residual_of
from jaxq.graph.sites import Group
from jaxq.numerics.drift import Drift
from jaxq.numerics.moments import Moments
from jaxq.pipeline.clock import Clock
from jaxq.pipeline.group_search import WORKERS, GroupSearch, advance_by_weight, count_weights
from jaxq.progress import Progress, silent
from jaxq.runtime.batches import Batch, check_feeds
from jaxq.search.result import GroupResult, effective_weight


def quantize_in_order(
    model: ir.Model,
    groups: Sequence[Group],
    data: Calibration,
    search: GroupSearch,
    clock: Clock,
    progress: Progress = silent,
) -> tuple[list[GroupResult], list[WindowRun]]:
    """Quantizes each group as soon as the activation that it multiplies is known.

    Args:
        model: A model that went through `jaxq.graph.prepare`; not changed.
        groups: All groups that are to be quantized.
        data: Calibration data.
        search: Quantizes each group once.
        clock: Has a phase "search" afterwards; all else is the caller's.
        progress: Notified of each batch of each window.

    Returns:
        A result for each group, in their order, and statistics of the windows that ran.

    Raises:
        JaxqError: onnxruntime cannot load or run a window, or an activation is not finite.
    """
    check_feeds(model, data.batches)
    quantizer = _GroupQuantizer(groups, search, clock, progress)
    windows = _plan(model, groups, data.window_bytes)

    def is_finished(captured: Collection[ir.Value]) -> bool:
        return all(search.stored(group) is not None for group in groups if _values_of(group) <= set(captured))

    with data.spools("float", "quantized") as spools:
        done = finished_windows(windows, spools, is_finished)
        activations = dict.fromkeys(a for group in groups for a in group.activations if a.value.is_graph_input())
        # Quantized weights do not change the model's inputs.
        quantizer.add({key: moments for a in activations for key, moments in input_moments(a, data.batches)}, {})
        captured = {value for window in windows[:done] for value in window.captures}
        quantizer.quantize([group for group in quantizer.unfinished() if _values_of(group) <= captured])
        advance = progress("calibrate and search", len(data.batches) * (len(windows) - done))
        variants = [ModelVariant(spools[0]), ModelVariant(spools[1], quantizer.replacement)]
        pairs = forward(model, windows, variants, data.session_options, done)
        runs = [_run_window(pair, quantizer, advance) for pair in pairs]
    return [quantizer.results[group] for group in groups], runs


def _values_of(group: Group) -> set[ir.Value]:
    return {activation.value for activation in group.activations}


def _plan(model: ir.Model, groups: Sequence[Group], window_bytes: int) -> list[Window]:
    """Windows up to each activation, and up to the sums behind products: their other summand stays that long."""
    sites = [site for group in groups for site in group.sites]
    sums = [residual.sum for site in sites if (residual := residual_of(site)) is not None]
    values = dict.fromkeys([*(a.value for group in groups for a in group.activations), *sums])
    steps = {node for site in sites for node in site.nodes if node.graph is model.graph and not is_table(node)}
    return plan_windows(model.graph, list(values), window_bytes, steps)


class _GroupQuantizer:
    """Quantizes groups when their moments are known, and remembers the results."""

    def __init__(self, groups: Sequence[Group], search: GroupSearch, clock: Clock, progress: Progress) -> None:
        self.results: dict[Group, GroupResult] = {}
        self._groups, self._search, self._clock = groups, search, clock
        self._advance = progress("search", count_weights(groups))
        self._moments: dict[str, Moments] = {}
        self._places: dict[str, tuple[Group, int]] = {}
        self.quantize([group for group in groups if not group.activations])

    def unfinished(self) -> list[Group]:
        """Groups without a result."""
        return [group for group in self._groups if group not in self.results]

    def add(self, moments: Mapping[str, Moments], drifts: Mapping[Group, Drift | None]) -> None:
        """Adds moments by key, and quantizes the groups all of whose moments are known now."""
        self._moments |= moments
        ready = [g for g in self.unfinished() if all(has_moments(a, self._moments) for a in g.activations)]
        self.quantize(ready, drifts)
        # Moments take the square of an activation's width: those that no group waits for go.
        waiting = {activation for group in self.unfinished() for activation in group.activations}
        keys = {key for activation in waiting for key in (activation.shared_key, *activation.keys)}
        self._moments = {key: moments for key, moments in self._moments.items() if key in keys}

    def quantize(self, groups: Sequence[Group], drifts: Mapping[Group, Drift | None] | None = None) -> None:
        """Quantizes groups with the moments that are known."""
        jobs = [(group, moments_of(group.activations, self._moments), (drifts or {}).get(group)) for group in groups]
        with self._clock.phase("search"), ThreadPoolExecutor(WORKERS) as pool:
            results = list(pool.map(lambda job: self._search.quantize(*job), jobs))
        for group, result in zip(groups, results, strict=True):
            self.results[group] = result
            advance_by_weight(self._advance, group)
            self._places |= {str(site.weight.name): (group, i) for i, site in enumerate(group.sites)}

    def replacement(self, name: str) -> np.ndarray | None:
        """The weight that the quantized model has in place of an initializer."""
        if name not in self._places:
            return None
        group, index = self._places[name]
        return effective_weight(self.results[group], index)


def _run_window(pair: tuple[Runner, ...], quantizer: _GroupQuantizer, advance: Callable[[], None]) -> WindowRun:
    """Runs a window of both models, and quantizes the groups that multiply what it captures."""
    captures = pair[0].window.captures
    activations = list(
        dict.fromkeys(a for group in quantizer.unfinished() for a in group.activations if a.value in captures)
    )
    drifting = {
        g: _DriftObserver(g) for g in quantizer.unfinished() if _can_drift(g) and g.activations[0] in activations
    }
    moments: dict[str, Moments] = {}

    def keep(_: Activation, key: str, new: Moments) -> None:
        moments[key] = new

    run = run_window(pair, activations, keep, advance, list(drifting.values()))
    drifts = {group: jax.block_until_ready(observer.collector.finish()) for group, observer in drifting.items()}
    quantizer.add(moments, drifts)
    return run


def _can_drift(group: Group) -> bool:
    """True if the group's weights multiply one activation as it is."""
    return len(group.activations) == 1 and group.count == 1 and group.activations[0].patches is None


class _DriftObserver:
    """Collects how far a group's activation has drifted, and the residuals that its products are added to."""

    def __init__(self, group: Group) -> None:
        self._activation = str(group.activations[0].value.name)
        residuals = [residual_of(site) for site in group.sites]
        self._residuals = [None if r is None else str(r.other.name) for r in residuals]
        self.collector = DriftCollector([site.c_out for site in group.sites])

    def __call__(self, values: Sequence[BatchValues], batch: Batch) -> None:
        """Adds a batch: values of the float model, then of the quantized one."""
        exact, quantized = values
        pairs = [None if name is None else _in_both(quantized, exact, name) for name in self._residuals]
        x, x_float = quantized.get(self._activation), exact.get(self._activation)
        self.collector.add(x, x_float, pairs, batch.keep)


def _in_both(quantized: BatchValues, exact: BatchValues, name: str) -> tuple[Array, Array] | None:
    """A value in both models; None where it is computed only after the product that is added to it."""
    return (quantized.get(name), exact.get(name)) if name in quantized and name in exact else None
