"""Run a model window by window: each window once over all batches, what later ones read waiting on disk.

Memory holds the weights of two windows (the next one loads meanwhile) and one batch, however many tokens there are.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from jaxq.calibration.spool import Spool
from jaxq.calibration.windows import Window, window_model
from jaxq.graph.tensors import in_memory
from jaxq.runtime.bfloat16 import has_bfloat16, widen_bfloat16
from jaxq.runtime.session import ValueType, output_types, run, session

if TYPE_CHECKING:
    from jaxq.runtime.session import OrtValue, Session


_SMALL = 1024
_LENT = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class SessionOptions:
    """How windows run: onnxruntime's providers and accuracy level, see `jaxq.runtime.session.session`."""

    providers: tuple[str, ...] = ("cpu",)
    accuracy_level: int | None = None


def plan_hash(windows: Sequence[Window]) -> str:
    """What a plan is recognised by: the values that its windows read and leave."""
    parts = [
        [w.weight_bytes, len(w.nodes), *([str(v.name) for v in vs] for vs in (w.inputs, w.captures, w.live))]
        for w in windows
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def forward(
    model: ir.Model, windows: Sequence[Window], spool: Spool, how: SessionOptions = SessionOptions(), done: int = 0
) -> Iterator["Runner"]:
    """Each window that is left, ready to run over the batches; the caller runs it on all of them before the next.

    Args:
        model: A model that went through `jaxq.graph.prepare.prepare`.
        windows: All windows of the plan.
        spool: Values between windows; it has those that the first ``done`` windows left.
        how: Where and how exactly onnxruntime runs them.
        done: Windows that ran already.

    Raises:
        JaxqError: onnxruntime cannot load a window.
    """
    plan = plan_hash(windows)
    types = _known_types(windows, spool, done)
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(_load, model, window, types, how) for window in windows[done : done + 1]]
        for i, window in enumerate(windows[done:], done):
            loaded = ahead.pop().result()
            types |= output_types(loaded.session)
            ahead += [pool.submit(_load, model, later, dict(types), how) for later in windows[i + 1 : i + 2]]
            runner = Runner(window, loaded, spool)
            del loaded
            yield runner
            runner.close()
            spool.commit(plan, i + 1, _needed(windows[i + 1 :]))


def forward_twice(
    model: ir.Model,
    windows: Sequence[Window],
    spools: tuple[Spool, Spool],
    how: SessionOptions,
    done: int,
    replaced: Callable[[str], np.ndarray | None],
) -> Iterator[tuple["Runner", "Runner"]]:
    """`forward` of the model and of one with other weights, side by side.

    Args:
        model, windows, how, done: As for `forward`.
        spools: For the values of each.
        replaced: The other weight of an initializer's name, or None where it stays; asked when a window loads, which is
            when the caller is done with the windows before.

    Raises:
        JaxqError: onnxruntime cannot load a window.
    """
    plan = plan_hash(windows)
    types = _known_types(windows, spools[0], done)
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(_load, model, window, dict(types), how) for window in windows[done : done + 1]]
        for i, window in enumerate(windows[done:], done):
            others = {str(v.name): array for v in window.weights if (array := replaced(str(v.name))) is not None}
            loaded = ahead.pop().result()
            second = Runner(window, _load(model, window, types, how, others), spools[1])
            types |= output_types(loaded.session)
            ahead += [pool.submit(_load, model, later, dict(types), how) for later in windows[i + 1 : i + 2]]
            first = Runner(window, loaded, spools[0])
            del loaded
            yield first, second
            for runner in (first, second):
                runner.close()
                runner.spool.commit(plan, i + 1, _needed(windows[i + 1 :]))


def _known_types(windows: Sequence[Window], spool: Spool, done: int) -> dict[str, ValueType]:
    """Types of the model's inputs, and of what windows that ran already left."""
    types = {name: ValueType.of(array) for name, array in spool.batches[0].feeds.items()}
    for value in (v for window in windows[done:] for v in window.inputs):
        if any(value in earlier.live for earlier in windows[:done]):
            types[str(value.name)] = ValueType.of(spool.get(0, str(value.name)))
    return types


def _needed(windows: Sequence[Window]) -> set[str]:
    return {str(v.name) for window in windows for v in window.inputs}


class Runner:
    """A window that is loaded."""

    def __init__(self, window: Window, loaded: "_Loaded", spool: Spool) -> None:
        self.window, self.spool = window, spool
        self._loaded: _Loaded | None = loaded

    def close(self) -> None:
        """Gives the memory back."""
        self._loaded = None

    def run(self, batch: int) -> dict[str, "OrtValue"]:
        """What the window computes of a batch; values that later windows read are kept for them.

        Raises:
            JaxqError: onnxruntime cannot run it.
        """
        assert self._loaded is not None
        outputs = [str(v.name) for v in dict.fromkeys((*self.window.captures, *self.window.live))]
        feeds = {str(v.name): self.spool.get(batch, str(v.name)) for v in self.window.inputs}
        values = run(self._loaded.session, outputs, feeds)
        for value in self.window.live:
            self.spool.put(batch, str(value.name), values[str(value.name)].numpy())
        return values


@dataclass(frozen=True, eq=False)
class _Loaded:
    session: "Session"
    weights: Mapping[str, np.ndarray]  # onnxruntime reads them where they are


def _load(
    model: ir.Model,
    window: Window,
    types: Mapping[str, ValueType],
    how: SessionOptions,
    replaced: Mapping[str, np.ndarray] | None = None,
) -> _Loaded:
    part = window_model(window, model.ir_version, model.opset_imports, list(model.functions.values()))
    for name, array in (replaced or {}).items():
        part.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    for value in part.graph.inputs:
        # Files need not say the types of inner values; the windows before this one do.
        known = types[str(value.name)]
        value.type = ir.TensorType(known.dtype)
        value.shape = None if known.rank is None else ir.Shape([None] * known.rank)
    if has_bfloat16(part):
        widen_bfloat16(part)
    weights = {name: array for name, value in part.graph.initializers.items() if (array := _lend(value)) is not None}
    proto = ir.to_proto(part).SerializeToString()
    return _Loaded(session(proto, how.accuracy_level, how.providers, weights), weights)


def _lend(value: ir.Value) -> np.ndarray | None:
    """A large weight's array, memory-mapped where it lies in a file; the model then only names it.

    Nothing is copied into a protobuf, which holds 2 GiB at most.
    """
    tensor = value.const_value
    if tensor is None or tensor.nbytes <= _SMALL or tensor.dtype not in _LENT:
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = in_memory(value)
        return None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if isinstance(tensor, ir.ExternalTensor):  # a map of its own, closed as soon as nobody reads it
        array = np.memmap(tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)
    else:
        array = tensor.numpy()
    value.const_value = ir.ExternalTensor(
        "lent", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(shape), name=str(value.name)
    )
    return np.require(array, requirements=["C", "ALIGNED"])
