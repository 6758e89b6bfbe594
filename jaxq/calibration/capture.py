"""Run a model over calibration data, window by window, and collect the second moments of its activations.

Every window runs once per batch, so the whole is one forward pass. Memory holds one window's moments, and the weights
and batch that `jaxq.calibration.forward` needs.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from jaxq.calibration.collect import Array, Collector
from jaxq.calibration.forward import ModelVariant, Runner, SessionOptions, forward, plan_hash
from jaxq.calibration.spool import Spool
from jaxq.calibration.windows import Window, plan_windows
from jaxq.errors import JaxqError
from jaxq.graph.activations import Activation
from jaxq.graph.sites import Group
from jaxq.numerics.moments import Moments
from jaxq.progress import Progress, silent
from jaxq.runtime.batches import Batch, check_feeds
from jaxq.runtime.session import to_jax

KeepMoments = Callable[[Activation, str, Moments], None]
"""Receives an activation, the key of its moments (`Activation.keys` or `Activation.shared_key`), and the moments."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The data that a model runs on, and how it runs.

    Attributes:
        batches: Calibration data, at least one batch.
        window_bytes: Weight bytes of a window.
        providers: Where onnxruntime may run windows; see `jaxq.runtime.session.session`.
        folder: Where values between windows are stored, for a run that resumes; None leaves nothing behind.
        key: Identifies the run that owns the folder; see `jaxq.calibration.spool.Spool`.
    """

    batches: Sequence[Batch]
    window_bytes: int = 64 << 20
    providers: Sequence[str] = ("cpu",)
    folder: Path | None = None
    key: str = ""

    @property
    def session_options(self) -> SessionOptions:
        """The options of the windows' sessions."""
        return SessionOptions(tuple(self.providers))

    @contextlib.contextmanager
    def spools(self, *names: str) -> Iterator[list[Spool]]:
        """A spool of each name, in the folder; in a temporary one where there is none."""
        with contextlib.ExitStack() as stack:
            folder = self.folder
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxq-")))
            yield [Spool(folder / name, self.batches, self.key) for name in names]


@dataclass(frozen=True)
class WindowRun:
    """Statistics of one window that ran.

    Attributes:
        nodes: Number of nodes.
        weight_bytes: Size of its weights.
        live: Number of values that it left for later windows.
        runs: Number of runs: one for each batch.
        seconds: Wall time of its runs; the next window loads meanwhile.
        unmasked: Captured activations whose shape shows no token axis, so that padding counted.
    """

    nodes: int
    weight_bytes: int
    live: int
    runs: int
    seconds: float
    unmasked: tuple[str, ...]


def capture_moments(
    model: ir.Model,
    activations: Sequence[Activation],
    data: Calibration,
    keep_moments: KeepMoments,
    progress: Progress = silent,
    stored: Collection[Activation] = (),
) -> list[WindowRun]:
    """Makes one forward pass, and calls `keep_moments` as soon as an activation's moments are complete.

    Args:
        model: A model that went through `jaxq.graph.prepare`.
        activations: The activations to collect.
        data: The calibration data. With a folder, the pass resumes where one with the same arguments was stopped; the
            windows that ran then are not among those returned.
        keep_moments: Called once for each activation and matrix.
        progress: Notified of each batch of each window.
        stored: Activations whose moments the caller has from a stopped run.

    Raises:
        JaxqError: onnxruntime cannot load or run a window, or an activation is not finite.
    """
    check_feeds(model, data.batches)
    for activation in activations:
        if activation.value.is_graph_input():
            for key, moments in input_moments(activation, data.batches):
                keep_moments(activation, key, moments)
    values = list(dict.fromkeys(activation.value for activation in activations))
    windows = plan_windows(model.graph, values, data.window_bytes)

    def is_finished(captured: Collection[ir.Value]) -> bool:
        return {activation for activation in activations if activation.value in captured} <= set(stored)

    with data.spools("captured") as spools:
        done = finished_windows(windows, spools, is_finished)
        advance = progress("calibrate", len(data.batches) * (len(windows) - done))
        variants = [ModelVariant(spool) for spool in spools]
        runners = forward(model, windows, variants, data.session_options, done)
        return [run_window(runner, activations, keep_moments, advance) for runner in runners]


def finished_windows(
    windows: Sequence[Window], spools: Sequence[Spool], is_finished: Callable[[Collection[ir.Value]], bool]
) -> int:
    """The number of windows that need not run again after a stopped run.

    Args:
        windows: All windows of the plan.
        spools: The values of each model that runs through the windows. All must have left those of the same windows.
        is_finished: True if the caller has everything that depends on these captured values.
    """
    plan = plan_hash(windows)
    counts = {spool.resume(plan) for spool in spools}
    captured = {value for window in windows[: min(counts)] for value in window.captures}
    if len(counts) == 1 and is_finished(captured):
        return counts.pop()
    for spool in spools:
        spool.forget()
    return 0


class BatchValues:
    """The values that one model computed of a batch: those of the window under way, and those that wait on disk."""

    def __init__(self, runner: Runner, batch: int) -> None:
        self._computed, self._runner, self._batch = runner.run(batch), runner, batch

    def __contains__(self, name: str) -> bool:
        """True if the value is computed already, and stored as long as it is read."""
        return name in self._computed or name in self._runner.spool

    def get(self, name: str) -> Array:
        """A value of this window, or an earlier one that waits for later windows."""
        value = self._computed.get(name)
        return self._runner.spool.get(self._batch, name) if value is None else to_jax(value)


Observer = Callable[[Sequence[BatchValues], Batch], None]
"""Sees the values of each model, in the order of the runners, and the batch that they were computed of."""


def run_window(
    runners: Sequence[Runner],
    activations: Sequence[Activation],
    keep_moments: KeepMoments,
    advance: Callable[[], None],
    observers: Sequence[Observer] = (),
) -> WindowRun:
    """Runs a window over all batches.

    Args:
        runners: One runner for each model. Moments come from the last model.
        activations: Activations to collect; those that this window does not compute are ignored.
        keep_moments: Called once for each collected activation and matrix, after the last batch.
        advance: Called after each batch.
        observers: Called with each batch's values.
    """
    start = time.perf_counter()
    window, batches = runners[0].window, runners[0].spool.batches
    collectors = [Collector(activation) for activation in activations if activation.value in window.captures]
    unmasked: set[str] = set()
    for i, batch in enumerate(batches):
        values = [BatchValues(runner, i) for runner in runners]
        for collector in collectors:
            name = str(collector.activation.value.name)
            if not collector.add(values[-1].get(name), batch.keep):
                unmasked.add(name)
        for observe in observers:
            observe(values, batch)
        advance()
    for collector in collectors:
        for key, moments in _finite_moments(collector):
            keep_moments(collector.activation, key, moments)
    return WindowRun(
        nodes=len(window.nodes),
        weight_bytes=window.weight_bytes,
        live=len(window.live),
        runs=len(batches),
        seconds=time.perf_counter() - start,
        unmasked=tuple(sorted(unmasked)),
    )


def input_moments(activation: Activation, batches: Sequence[Batch]) -> Iterator[tuple[str, Moments]]:
    """The moments of an activation that is an input of the model, by their keys; no window has to run for them."""
    collector = Collector(activation)
    for batch in batches:
        collector.add(np.asarray(batch.feeds[str(activation.value.name)]), batch.keep)
    yield from _finite_moments(collector)


def _finite_moments(collector: Collector) -> Iterator[tuple[str, Moments]]:
    for key, moments in collector.finish():
        if not bool(jnp.isfinite(moments.h).all()):
            name = str(collector.activation.value.name)
            raise ActivationError(
                f"activation {name!r} is NaN or infinite on the calibration data: fix the model or the data"
            )
        yield key, moments


class ActivationError(JaxqError):
    """An activation is NaN or infinite; a weight may be the cause."""


@contextlib.contextmanager
def naming_weights(groups: Sequence[Group]) -> Iterator[None]:
    """Raises the error of a weight that is NaN or infinite, in place of that of the activation that it spoils."""
    try:
        yield
    except ActivationError:
        for site in (site for group in groups for site in group.sites):
            for index in range(site.count):
                site.array(index)
        raise
