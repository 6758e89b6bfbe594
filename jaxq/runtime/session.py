"""Load and run models in onnxruntime; no other module imports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import jax
import jax.dlpack
import ml_dtypes
import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession as Session
    from onnxruntime import OrtValue


def runtime() -> ModuleType:
    """onnxruntime, imported when it is first needed.

    Raises:
        JaxqError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise JaxqError("onnxruntime is not installed: install jaxq with its extra cpu, as in .[cpu]") from error
    return onnxruntime


_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "trt": "TensorrtExecutionProvider",
    "dml": "DmlExecutionProvider",
}


def session(
    model: bytes | str | Path,
    accuracy_level: int | None = None,
    providers: Sequence[str] = ("cpu",),
    weights: Mapping[str, np.ndarray] | None = None,
    mapped: bool = False,
) -> "Session":
    """An onnxruntime session.

    Args:
        model: Serialized model, or the path of a file.
        accuracy_level: How exactly products with 4-bit weights are computed: 1 in float32, 4 with activations rounded
            to 8 bits; None takes onnxruntime's default, 4.
        providers: Where the model may run, in order of preference: "cpu", "cuda:0" (the number is the device), "trt".
            Providers that this onnxruntime lacks are skipped.
        weights: Values of initializers that the model says are external data. The session reads these arrays in
            place: they must live as long as it does.
        mapped: Keep external weights memory-mapped instead of repacking them in memory: slower products, for models
            larger than memory.

    Raises:
        JaxqError: onnxruntime cannot load the model, or has none of the providers.
    """
    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if accuracy_level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=find_providers(providers))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise JaxqError(f"onnxruntime cannot load the model: {_first_line(error)}") from error


def find_providers(names: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """onnxruntime's names and options of the providers that it has.

    Raises:
        JaxqError: a name is unknown, or onnxruntime has none of them.

    Example:
        >>> find_providers(["cpu"])
        [('CPUExecutionProvider', {})]
    """
    available = runtime().get_available_providers()
    providers = []
    for name in names:
        kind, _, number = name.partition(":")
        if kind not in _PROVIDERS or (number and not number.isdigit()):
            raise JaxqError(f"provider is {name!r}: choose among cpu, cuda:<device>, trt and dml:<device>")
        if _PROVIDERS[kind] in available:
            providers.append((_PROVIDERS[kind], {"device_id": number} if number and kind != "cpu" else {}))
    if not providers:
        raise JaxqError(f"onnxruntime has none of the providers {', '.join(names)}: it has {', '.join(available)}")
    return providers


@dataclass(frozen=True)
class ValueType:
    """Element type of a value, and its rank where that is known."""

    dtype: ir.DataType
    rank: int | None

    @classmethod
    def of(cls, array: np.ndarray) -> "ValueType":
        """The type of an array."""
        return cls(ir.DataType.from_numpy(array.dtype), array.ndim)


def output_types(session: "Session") -> dict[str, ValueType]:
    """Types of a session's outputs; onnxruntime shows a scalar like a value of unknown rank."""
    return {
        o.name: ValueType(ir.DataType[o.type.removeprefix("tensor(").removesuffix(")").upper()], len(o.shape) or None)
        for o in session.get_outputs()
    }


def to_jax(value: "OrtValue") -> jax.Array:
    """The value as an array on jax's default device: without a copy where that is the CPU."""
    # onnxruntime before 1.26 has no DLPack
    array = jax.dlpack.from_dlpack(value) if hasattr(value, "__dlpack__") else value.numpy()
    return jax.device_put(array, jax.local_devices()[0])


def run(
    session: "Session", outputs: Sequence[str], feeds: "Mapping[str, np.ndarray | OrtValue]"
) -> dict[str, "OrtValue"]:
    """Outputs by name, as values that share their memory with jax through DLPack.

    Outputs of one call can be inputs of the next as they are.

    Inputs in bfloat16 are given as float32: `jaxq.runtime.bfloat16` widens the models that have any.

    Raises:
        JaxqError: onnxruntime cannot run the model on these inputs.
    """
    values = {name: _value(feed) if isinstance(feed, np.ndarray) else feed for name, feed in feeds.items()}
    try:
        return dict(zip(outputs, session.run_with_ort_values(list(outputs), values), strict=True))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise JaxqError(f"onnxruntime cannot run the model on the data given: {_first_line(error)}") from error


def _value(array: np.ndarray) -> "OrtValue":
    widened = array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
    return runtime().OrtValue.ortvalue_from_numpy(np.asarray(widened, order="C"))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
