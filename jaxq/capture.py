"""Run a model over calibration data, window by window, and keep the second moments of its activations.

Every window runs once per batch, so the whole is one forward pass. What later windows need of a batch waits on disk:
memory holds the weights of two windows (the next one loads meanwhile), one batch and the moments of one window, however
many tokens there are.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from jaxq.collect import Collector
from jaxq.errors import JaxqError
from jaxq.graph import in_memory
from jaxq.progress import Progress, silent
from jaxq.reading import Reading
from jaxq.runtime import ValueType, output_types, run, session, to_jax
from jaxq.statistics import Moments
from jaxq.windows import Window, plan_windows, window_model

if TYPE_CHECKING:
    from jaxq.runtime import Session


@dataclass(frozen=True, eq=False)
class Batch:
    """One input of the model.

    Attributes:
        feeds: Array of each input name.
        keep: 1 for real tokens and 0 for padding, [batch, sequence]; None where everything is real.
    """

    feeds: Mapping[str, np.ndarray]
    keep: np.ndarray | None = None


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


def capture_moments(
    model: ir.Model,
    wanted: Sequence[Reading],
    batches: Sequence[Batch],
    keep_moments: Callable[[str, Moments], None],
    max_bytes: int = 64 << 20,
    providers: Sequence[str] = ("cpu",),
    progress: Progress = silent,
) -> list[WindowRun]:
    """One forward pass of the model; hands over the moments of each wanted reading as soon as it has them.

    Args:
        model: A model that went through `jaxq.graph.prepare`.
        wanted: Activations, and what is to be read of them.
        batches: Calibration data, at least one batch.
        keep_moments: Called once for each reading and matrix, with `Reading.keys` or `Reading.shared_key`, and moments.
        max_bytes: Weight bytes a window.
        providers: Where onnxruntime may run it; see `jaxq.runtime.session`.
        progress: Told of each batch of each window.

    Raises:
        JaxqError: onnxruntime cannot load or run a window, or an activation is not finite.
    """
    _check_feeds(model, batches)
    for reading in wanted:
        if reading.value.is_graph_input():
            _collect_input(reading, batches, keep_moments)
    windows = plan_windows(model.graph, list(dict.fromkeys(reading.value for reading in wanted)), max_bytes)
    runs = []
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        spool = _Spool(Path(folder), batches)
        advance = progress("calibrate", len(batches) * len(windows))
        for i, (window, runner) in enumerate(_load_ahead(model, windows, batches[0], providers)):
            here = [reading for reading in wanted if reading.value in window.captures]
            runs.append(_run_window(window, runner, spool, here, keep_moments, advance))
            spool.keep_only({str(v.name) for later in windows[i + 1 :] for v in later.inputs})
    return runs


def _load_ahead(
    model: ir.Model, windows: Sequence[Window], batch: Batch, providers: Sequence[str]
) -> Iterator[tuple[Window, "Session"]]:
    """Each window with its session; the next one loads while the caller runs this one."""
    types = {name: ValueType.of(array) for name, array in batch.feeds.items()}
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(_load, model, window, types, providers) for window in windows[:1]]
        for i, window in enumerate(windows):
            runner = ahead.pop().result()
            types |= output_types(runner)
            ahead += [pool.submit(_load, model, later, dict(types), providers) for later in windows[i + 1 : i + 2]]
            yield window, runner
            del runner


def _check_feeds(model: ir.Model, batches: Sequence[Batch]) -> None:
    if not batches:
        raise JaxqError("the calibration data has no samples: give at least one")
    names = [str(v.name) for v in model.graph.inputs]
    for i, batch in enumerate(batches):
        if missing := [name for name in names if name not in batch.feeds]:
            raise JaxqError(f"batch {i} of the calibration data lacks {missing}: the model's inputs are {names}")
        for value in model.graph.inputs:
            _check_feed(value, np.asarray(batch.feeds[str(value.name)]))


def _check_feed(value: ir.Value, array: np.ndarray) -> None:
    """Refuses an array that does not fit the model's input."""
    wanted = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
    fits = wanted is None or (
        len(wanted) == array.ndim and all(d is None or d == n for d, n in zip(wanted, array.shape, strict=True))
    )
    if not fits or (value.dtype is not None and value.dtype != ir.DataType.from_numpy(array.dtype)):
        raise JaxqError(
            f"the calibration data for input {value.name!r} is {array.dtype} of shape {list(array.shape)}: "
            f"the model wants {value.dtype} of shape {value.shape}"
        )


class _Spool:
    """Values of each batch that later windows read: the model's inputs, and files for computed ones."""

    def __init__(self, folder: Path, batches: Sequence[Batch]) -> None:
        self.folder, self.batches = folder, batches
        self._numbers: dict[str, int] = {}

    def get(self, batch: int, name: str) -> np.ndarray:
        feeds = self.batches[batch].feeds
        return feeds[name] if name in feeds else np.load(self._path(batch, name), mmap_mode="r")

    def put(self, batch: int, name: str, array: np.ndarray) -> None:
        np.save(self._path(batch, name), array)

    def keep_only(self, names: Collection[str]) -> None:
        for name in self._numbers.keys() - names:
            for batch in range(len(self.batches)):
                self._path(batch, name).unlink(missing_ok=True)

    def _path(self, batch: int, name: str) -> Path:
        number = self._numbers.setdefault(name, len(self._numbers))
        return self.folder / f"{number}-{batch}.npy"


def _run_window(
    window: Window,
    runner: "Session",
    spool: _Spool,
    wanted: Sequence[Reading],
    keep_moments: Callable[[str, Moments], None],
    advance: Callable[[], None],
) -> WindowRun:
    start = time.perf_counter()
    inputs = [str(v.name) for v in window.inputs]
    outputs = [str(v.name) for v in dict.fromkeys((*window.captures, *window.live))]
    live = {str(v.name) for v in window.live}
    collectors = [Collector(reading) for reading in wanted]
    unmasked: set[str] = set()
    runs = 0
    for i in range(len(spool.batches)):
        values = run(runner, outputs, {name: spool.get(i, name) for name in inputs})
        runs += 1
        for name in live:
            spool.put(i, name, values[name].numpy())
        for collector in collectors:
            name = str(collector.reading.value.name)
            if not collector.add(to_jax(values[name]), spool.batches[i].keep):
                unmasked.add(name)
        advance()
    for collector in collectors:
        _hand_over(collector, keep_moments)
    seconds = time.perf_counter() - start
    return WindowRun(len(window.nodes), window.weight_bytes, len(live), runs, seconds, tuple(sorted(unmasked)))


def checked(name: str, moments: Moments) -> Moments:
    """The moments, if they are finite."""
    if not bool(jnp.isfinite(moments.h).all()):
        raise JaxqError(f"activation {name!r} is NaN or infinite on the calibration data: mend the model or the data")
    return moments


def _load(model: ir.Model, window: Window, types: Mapping[str, ValueType], providers: Sequence[str]) -> "Session":
    part = window_model(window, model.ir_version, model.opset_imports, list(model.functions.values()))
    for value in part.graph.inputs:
        # Files need not say the types of inner values; the windows before this one do.
        known = types[str(value.name)]
        value.type = ir.TensorType(known.dtype)
        value.shape = None if known.rank is None else ir.Shape([None] * known.rank)
    for value in part.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = in_memory(value)
    return session(ir.to_proto(part).SerializeToString(), providers=providers)


def _collect_input(reading: Reading, batches: Sequence[Batch], keep_moments: Callable[[str, Moments], None]) -> None:
    collector = Collector(reading)
    for batch in batches:
        collector.add(np.asarray(batch.feeds[str(reading.value.name)]), batch.keep)
    _hand_over(collector, keep_moments)


def _hand_over(collector: Collector, keep_moments: Callable[[str, Moments], None]) -> None:
    for key, moments in collector.finish():
        keep_moments(key, checked(str(collector.reading.value.name), moments))
