"""Run a model over calibration data, window by window, and keep the second moments of its activations.

Every window runs once per batch, so the whole is one forward pass. Memory holds what `forward` needs, and the
moments of one window.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from jaxq.calibration.collect import Collector
from jaxq.calibration.forward import Runner, SessionOptions, forward, plan_hash
from jaxq.calibration.spool import Spool
from jaxq.calibration.windows import Window, plan_windows
from jaxq.errors import JaxqError
from jaxq.graph.activations import Activation
from jaxq.graph.sites import Group
from jaxq.numerics.moments import Moments
from jaxq.progress import Progress, silent
from jaxq.runtime.batches import Batch, check_feeds
from jaxq.runtime.session import to_jax


@dataclass(frozen=True)
class WindowRun:
    """What one window did.

    Attributes:
        nodes: Number of nodes.
        weight_bytes: Size of its weights.
        live: Number of values that it left for later windows.
        runs: How many times it ran: once a batch.
        seconds: Wall time of its runs; the next window loads meanwhile.
        unmasked: Captured activations whose shape shows no token axis, so that padding counted.
    """

    nodes: int
    weight_bytes: int
    live: int
    runs: int
    seconds: float
    unmasked: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a calibration keeps what it has finished.

    Attributes:
        folder: Holds the values between windows.
        key: Whose work it is; see `jaxq.calibration.spool.Spool`.
        found: Wanted readings whose moments the caller has already.
    """

    folder: Path
    key: str
    found: Collection[Activation]


def capture_moments(
    model: ir.Model,
    wanted: Sequence[Activation],
    batches: Sequence[Batch],
    keep_moments: Callable[[str, Moments], None],
    max_bytes: int = 64 << 20,
    providers: Sequence[str] = ("cpu",),
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
) -> list[WindowRun]:
    """One forward pass of the model; hands over the moments of each wanted reading as soon as it has them.

    Args:
        model: A model that went through `jaxq.graph.prepare.prepare`.
        wanted: Activations, and what is to be read of them.
        batches: Calibration data, at least one batch.
        keep_moments: Called once for each activation and matrix, with its key (`Activation.keys`) and its moments.
        max_bytes: Weight bytes a window.
        providers: Where onnxruntime may run it; see `jaxq.runtime.session.session`.
        progress: Told of each batch of each window.
        checkpoint: Goes on where a run with the same arguments was stopped; the windows that ran then are not among
            those returned. None begins anew and leaves nothing.

    Raises:
        JaxqError: onnxruntime cannot load or run a window, or an activation is not finite.
    """
    check_feeds(model, batches)
    for activation in wanted:
        if activation.value.is_graph_input():
            _collect_input(activation, batches, keep_moments)
    windows = plan_windows(model.graph, list(dict.fromkeys(activation.value for activation in wanted)), max_bytes)
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        spool = Spool(Path(folder), batches) if checkpoint is None else _spool(checkpoint, batches)
        done = 0 if checkpoint is None else _done(windows, wanted, spool, checkpoint)
        advance = progress("calibrate", len(batches) * (len(windows) - done))
        how = SessionOptions(tuple(providers))
        runners = forward(model, windows, spool, how, done)
        return [_run_window(runner, wanted, keep_moments, advance) for runner in runners]


def _spool(checkpoint: Checkpoint, batches: Sequence[Batch]) -> Spool:
    return Spool(checkpoint.folder, batches, checkpoint.key)


def _done(windows: Sequence[Window], wanted: Sequence[Activation], spool: Spool, checkpoint: Checkpoint) -> int:
    """Windows that need not run again: they left their values, and the caller has their moments."""
    done = spool.resume(plan_hash(windows))
    captured = {value for window in windows[:done] for value in window.captures}
    return done if {r for r in wanted if r.value in captured} <= set(checkpoint.found) else 0


def _run_window(
    runner: Runner,
    wanted: Sequence[Activation],
    keep_moments: Callable[[str, Moments], None],
    advance: Callable[[], None],
) -> WindowRun:
    start = time.perf_counter()
    window, batches = runner.window, runner.spool.batches
    collectors = [Collector(activation) for activation in wanted if activation.value in window.captures]
    unmasked: set[str] = set()
    for i, batch in enumerate(batches):
        values = runner.run(i)
        for collector in collectors:
            name = str(collector.activation.value.name)
            if not collector.add(to_jax(values[name]), batch.keep):
                unmasked.add(name)
        advance()
    for collector in collectors:
        _hand_over(collector, keep_moments)
    seconds = time.perf_counter() - start
    return WindowRun(
        len(window.nodes), window.weight_bytes, len(window.live), len(batches), seconds, tuple(sorted(unmasked))
    )


class ActivationError(JaxqError):
    """An activation is NaN or infinite; a weight may be to blame."""


@contextmanager
def naming_weights(groups: Sequence[Group]) -> Iterator[None]:
    """Names a weight of the groups that is NaN or infinite in the stead of the activation that it spoils."""
    try:
        yield
    except ActivationError:
        for site in (site for group in groups for site in group.sites):
            for index in range(site.count):
                site.array(index)
        raise


def checked(name: str, moments: Moments) -> Moments:
    """The moments, if they are finite.

    Raises:
        ActivationError: they are not.
    """
    if not bool(jnp.isfinite(moments.h).all()):
        raise ActivationError(
            f"activation {name!r} is NaN or infinite on the calibration data: mend the model or the data"
        )
    return moments


def _collect_input(
    activation: Activation, batches: Sequence[Batch], keep_moments: Callable[[str, Moments], None]
) -> None:
    collector = Collector(activation)
    for batch in batches:
        collector.add(np.asarray(batch.feeds[str(activation.value.name)]), batch.keep)
    _hand_over(collector, keep_moments)


def _hand_over(collector: Collector, keep_moments: Callable[[str, Moments], None]) -> None:
    for key, moments in collector.finish():
        keep_moments(key, checked(str(collector.activation.value.name), moments))
