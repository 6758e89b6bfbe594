"""onnxruntime: load a model, run it. No other module imports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.dlpack
import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError

try:
    import onnxruntime as ort
except ImportError as error:
    raise JaxqError(
        "onnxruntime is not installed: install jaxq with its extra cpu or cuda12, as in jaxq[cpu]"
    ) from error

Session = ort.InferenceSession
VERSION: str = ort.__version__


def session(model: bytes | str | Path, accuracy_level: int | None = None) -> Session:
    """An onnxruntime session on the CPU.

    Args:
        model: Serialized model, or the path of a file.
        accuracy_level: How exactly products with 4-bit weights are computed: 1 in float32, 4 with activations rounded
            to 8 bits; None leaves onnxruntime's default, which is 4.

    Raises:
        JaxqError: onnxruntime cannot load the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if accuracy_level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    source = model if isinstance(model, bytes) else str(model)
    try:
        return Session(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise JaxqError(f"onnxruntime cannot load the model: {_first_line(error)}") from error


@dataclass(frozen=True)
class ValueType:
    """Element type of a value, and its rank where that is known."""

    dtype: ir.DataType
    rank: int | None

    @classmethod
    def of(cls, array: np.ndarray) -> "ValueType":
        """The type of an array."""
        return cls(ir.DataType.from_numpy(array.dtype), array.ndim)


def output_types(session: Session) -> dict[str, ValueType]:
    """Types of a session's outputs; onnxruntime shows a scalar like a value of unknown rank."""
    return {
        o.name: ValueType(ir.DataType[o.type.removeprefix("tensor(").removesuffix(")").upper()], len(o.shape) or None)
        for o in session.get_outputs()
    }


def to_jax(value: ort.OrtValue) -> jax.Array:
    """The value as an array on jax's default device: without a copy where that is the CPU."""
    return jax.device_put(jax.dlpack.from_dlpack(value), jax.local_devices()[0])


def run(session: Session, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, ort.OrtValue]:
    """Outputs by name, as values that share their memory with jax through DLPack.

    Raises:
        JaxqError: onnxruntime cannot run the model on these inputs.
    """
    values = {name: ort.OrtValue.ortvalue_from_numpy(np.asarray(a, order="C")) for name, a in feeds.items()}
    try:
        return dict(zip(outputs, session.run_with_ort_values(list(outputs), values), strict=True))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise JaxqError(f"onnxruntime cannot run the model on the data given: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
