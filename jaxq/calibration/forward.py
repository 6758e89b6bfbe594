"""Run a model window by window: each window once over all batches; values that later windows read wait on disk.

Memory holds the weights of two windows (the next one loads meanwhile) and one batch, whatever the number of tokens.
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


_SMALL_BYTES = 1024
_SHARED_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class SessionOptions:
    """How windows run: onnxruntime's providers and accuracy level, see `jaxq.runtime.session.session`."""

    providers: tuple[str, ...] = ("cpu",)
    accuracy_level: int | None = None


def plan_hash(windows: Sequence[Window]) -> str:
    """A hash of the values that the windows read and leave, by which a stopped run finds its plan again."""
    windows_read_and_leave = [
        [w.weight_bytes, len(w.nodes), *([str(v.name) for v in vs] for vs in (w.inputs, w.captures, w.live))]
        for w in windows
    ]
    return hashlib.sha256(json.dumps(windows_read_and_leave).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class ModelVariant:
    """A model that runs through the windows: the model itself, or a copy with other weights.

    Attributes:
        spool: The variant's values between windows.
        replacement: The other weight of an initializer's name, or None where the weight stays. A window asks when it
            loads, which is when the caller is done with the windows before it. None for the model itself.
    """

    spool: Spool
    replacement: Callable[[str], np.ndarray | None] | None = None


def forward(
    model: ir.Model,
    windows: Sequence[Window],
    variants: Sequence[ModelVariant],
    options: SessionOptions = SessionOptions(),
    done: int = 0,
) -> Iterator[tuple["Runner", ...]]:
    """Each window that has not run yet, loaded for every variant of the model.

    The caller runs it over all batches before it asks for the next window.

    Args:
        model: A model that went through `jaxq.graph.prepare`.
        windows: All windows of the plan.
        variants: The model itself, first, and copies of it that run beside it. Their spools hold the values that the
            first ``done`` windows left.
        options: Where and how exactly onnxruntime runs the windows.
        done: Number of windows that have run already.

    Raises:
        JaxqError: onnxruntime cannot load a window.
    """
    plan = plan_hash(windows)
    types = _known_types(windows, variants[0].spool, done)
    with ThreadPoolExecutor(1) as pool:
        # The next window of the model itself loads in the background while this one runs.
        ahead = [pool.submit(_load, model, window, dict(types), options) for window in windows[done : done + 1]]
        for i, window in enumerate(windows[done:], done):
            # Weights of the other variants are ready only now: the caller has finished the windows before.
            loaded = [_load(model, window, types, options, _replaced(window, variant)) for variant in variants[1:]]
            loaded.insert(0, ahead.pop().result())
            types |= output_types(loaded[0].session)
            ahead += [pool.submit(_load, model, later, dict(types), options) for later in windows[i + 1 : i + 2]]
            runners = tuple(
                Runner(window, session, variant.spool) for session, variant in zip(loaded, variants, strict=True)
            )
            del loaded
            yield runners
            for runner in runners:
                runner.close()
                runner.spool.commit(plan, i + 1, _needed(windows[i + 1 :]))


def _replaced(window: Window, variant: ModelVariant) -> dict[str, np.ndarray]:
    """The weights of a window that a variant replaces, by name."""
    if variant.replacement is None:
        return {}
    names = [str(value.name) for value in window.weights]
    return {name: array for name in names if (array := variant.replacement(name)) is not None}


def _known_types(windows: Sequence[Window], spool: Spool, done: int) -> dict[str, ValueType]:
    """Types of the model's inputs, and of the values that finished windows left."""
    types = {name: ValueType.of(array) for name, array in spool.batches[0].feeds.items()}
    for value in (v for window in windows[done:] for v in window.inputs):
        if any(value in earlier.live for earlier in windows[:done]):
            types[str(value.name)] = ValueType.of(spool.get(0, str(value.name)))
    return types


def _needed(windows: Sequence[Window]) -> set[str]:
    """Names of the values that windows read."""
    return {str(v.name) for window in windows for v in window.inputs}


class Runner:
    """A window of one model, loaded into onnxruntime."""

    def __init__(self, window: Window, loaded: "_Loaded", spool: Spool) -> None:
        self.window, self.spool = window, spool
        self._loaded: _Loaded | None = loaded

    def close(self) -> None:
        """Frees the memory of its weights."""
        self._loaded = None

    def run(self, batch: int) -> dict[str, "OrtValue"]:
        """Runs the window on a batch, and stores the values that later windows read.

        Returns:
            The captured values and the stored ones, by name.

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
    """A session, and the arrays of its weights."""

    session: "Session"
    weights: Mapping[str, np.ndarray]  # onnxruntime reads these arrays in place


def _load(
    model: ir.Model,
    window: Window,
    types: Mapping[str, ValueType],
    options: SessionOptions,
    replaced: Mapping[str, np.ndarray] | None = None,
) -> _Loaded:
    submodel = window_model(window, model.ir_version, model.opset_imports, list(model.functions.values()))
    for name, array in (replaced or {}).items():
        submodel.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    for value in submodel.graph.inputs:
        # Files need not say the types of inner values; the windows before this one do.
        known = types[str(value.name)]
        value.type = ir.TensorType(known.dtype)
        value.shape = None if known.rank is None else ir.Shape([None] * known.rank)
    if has_bfloat16(submodel):
        widen_bfloat16(submodel)
    weights = {
        name: array
        for name, value in submodel.graph.initializers.items()
        if (array := _share_weight(value)) is not None
    }
    proto = ir.to_proto(submodel).SerializeToString()
    return _Loaded(session(proto, options.accuracy_level, options.providers, weights), weights)


def _share_weight(value: ir.Value) -> np.ndarray | None:
    """Replaces a large weight by its name in the model, and returns its array, which onnxruntime reads in place.

    The array is memory-mapped where it lies in a file. Nothing is copied into a protobuf, which holds at most 2 GiB.
    """
    tensor = value.const_value
    if tensor is None or tensor.nbytes <= _SMALL_BYTES or tensor.dtype not in _SHARED_TYPES:
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = in_memory(value)
        return None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if isinstance(tensor, ir.ExternalTensor):  # a map of its own, closed as soon as nobody reads it
        array = np.memmap(tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)
    else:
        array = tensor.numpy()
    value.const_value = ir.ExternalTensor(
        "shared", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(shape), name=str(value.name)
    )
    return np.require(array, requirements=["C", "ALIGNED"])
