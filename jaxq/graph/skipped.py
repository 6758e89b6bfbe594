"""Weights that are left alone, each with the reason; and which tensors count as weights at all."""

from dataclasses import dataclass

import onnx_ir as ir

from jaxq.graph.normalize.functions import left_functions
from jaxq.graph.readers import STANDARD
from jaxq.graph.skip_reasons import VECTOR

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Skipped:
    """A weight that is left alone, and why."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer, or of a Constant node's output; None of all else."""
    node = value.producer()
    if node is None:
        return value.const_value if value.is_initializer() else None
    if node.op_type != "Constant" or node.domain not in STANDARD or len(node.attributes) != 1:
        return None
    return None if any(a.is_ref() for a in node.attributes.values()) else ir.convenience.get_const_tensor(value)


def is_listed(value: ir.Value) -> bool:
    """Whether a value holds floats that a report names: all but scalars, and vectors of one number or none."""
    tensor = constant_tensor(value)
    return tensor is not None and tensor.dtype in FLOAT_TYPES and (tensor.size > 1 or len(tensor.shape) > 1)


def skip(weight: ir.Value, reason: str) -> Skipped:
    """A weight that is left alone."""
    tensor = constant_tensor(weight)
    assert tensor is not None
    return Skipped(str(weight.name), tuple(int(d) for d in tensor.shape.numpy()), tensor.nbytes, reason)


def skipped_in_functions(model: ir.Model) -> list[Skipped]:
    """Floats in functions that `jaxq.graph.prepare.prepare` did not write out, each with the reason."""
    found = left_functions(model)
    return [Skipped(name, tuple(tensor.shape.numpy()), tensor.nbytes, why or VECTOR) for name, tensor, why in found]
