"""Run a model over calibration data, window by window, and keep the second moments of its activations.

Every window runs once per batch, so the whole is one forward pass. Memory holds what `jaxq.forward` needs, and the
moments of one window.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from jaxq.batches import Batch, check_feeds
from jaxq.errors import JaxqError
from jaxq.forward import Runner, Runtime, forward, plan_hash
from jaxq.progress import Progress, silent
from jaxq.runtime import to_jax
from jaxq.spool import Spool
from jaxq.statistics import Moments, MomentSums, accumulate_in_place, finish, zero_sums
from jaxq.windows import Window, plan_windows


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
        found: Names of wanted activations whose moments the caller has already.
    """

    folder: Path
    found: Collection[str]


def capture_moments(
    model: ir.Model,
    wanted: Sequence[ir.Value],
    batches: Sequence[Batch],
    keep_moments: Callable[[str, Moments], None],
    max_bytes: int = 64 << 20,
    providers: Sequence[str] = ("cpu",),
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
) -> list[WindowRun]:
    """One forward pass of the model; hands over the moments of each wanted activation as soon as it has them.

    Args:
        model: A model that went through `jaxq.graph.prepare`.
        wanted: Activations [..., c_in].
        batches: Calibration data, at least one batch.
        keep_moments: Called once for each activation, with its name and moments.
        max_bytes: Weight bytes a window.
        providers: Where onnxruntime may run it; see `jaxq.runtime.session`.
        progress: Told of each batch of each window.
        checkpoint: Goes on where a run with the same arguments was stopped; the windows that ran then are not among
            those returned. None begins anew and leaves nothing.

    Raises:
        JaxqError: onnxruntime cannot load or run a window, or an activation is not finite.
    """
    check_feeds(model, batches)
    for value in wanted:
        if value.is_graph_input():
            keep_moments(str(value.name), _input_moments(str(value.name), batches))
    windows = plan_windows(model.graph, wanted, max_bytes)
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        spool = Spool(Path(folder) if checkpoint is None else checkpoint.folder, batches)
        done = 0 if checkpoint is None else _done(windows, spool, checkpoint)
        advance = progress("calibrate", len(batches) * (len(windows) - done))
        how = Runtime(tuple(providers))
        return [_run_window(runner, keep_moments, advance) for runner in forward(model, windows, spool, how, done)]


def _done(windows: Sequence[Window], spool: Spool, checkpoint: Checkpoint) -> int:
    """Windows that need not run again: they left their values, and the caller has their moments."""
    done = spool.resume(plan_hash(windows))
    captured = {str(v.name) for window in windows[:done] for v in window.captures}
    return done if captured <= set(checkpoint.found) else 0


def _run_window(runner: Runner, keep_moments: Callable[[str, Moments], None], advance: Callable[[], None]) -> WindowRun:
    start = time.perf_counter()
    window, batches = runner.window, runner.spool.batches
    captures = [str(v.name) for v in window.captures]
    sums: dict[str, MomentSums] = {}
    unmasked: set[str] = set()
    for i, batch in enumerate(batches):
        values = runner.run(i)
        for name in captures:
            x = to_jax(values[name])
            keep, masked = token_mask(x.shape, batch.keep)
            if not masked:
                unmasked.add(name)
            c_in = x.shape[-1]
            old = sums.pop(name, None) or zero_sums(c_in)
            sums[name] = accumulate_in_place(old, x.reshape(-1, c_in), jnp.asarray(keep))
        advance()
    for name in captures:
        keep_moments(name, checked(name, finish(sums.pop(name))))
    seconds = time.perf_counter() - start
    return WindowRun(
        len(window.nodes), window.weight_bytes, len(window.live), len(batches), seconds, tuple(sorted(unmasked))
    )


def token_mask(shape: tuple[int, ...], keep: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """Which rows of an activation [..., c_in] are real tokens, flat, and whether the mask could be applied.

    Example:
        >>> token_mask((1, 3, 8), np.array([[1, 1, 0]]))[0].tolist()
        [1.0, 1.0, 0.0]
    """
    rows = int(np.prod(shape[:-1]))
    if keep is None or keep.all():
        return np.ones(rows, np.float32), True
    if shape[:-1] == keep.shape or shape[:-1] == (keep.size,):
        return keep.ravel().astype(np.float32), True
    return np.ones(rows, np.float32), False


def checked(name: str, moments: Moments) -> Moments:
    """The moments, if they are finite."""
    if not bool(jnp.isfinite(moments.h).all()):
        raise JaxqError(f"activation {name!r} is NaN or infinite on the calibration data: mend the model or the data")
    return moments


def _input_moments(name: str, batches: Sequence[Batch]) -> Moments:
    sums = zero_sums(batches[0].feeds[name].shape[-1])
    for batch in batches:
        x = batch.feeds[name]
        keep, _ = token_mask(x.shape, batch.keep)
        sums = accumulate_in_place(sums, jnp.asarray(x.reshape(-1, x.shape[-1])), jnp.asarray(keep))
    return checked(name, finish(sums))
