"""Weights that are left alone, each with the reason; and which tensors count as weights at all."""

from dataclasses import dataclass

import onnx_ir as ir

from jaxq.graph.constants import constant_tensor, static_shape
from jaxq.graph.normalize.functions import left_functions
from jaxq.graph.skip_reasons import VECTOR


@dataclass(frozen=True)
class Skipped:
    """A weight that is left alone, and why."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


def skip(weight: ir.Value, reason: str) -> Skipped:
    """A weight that is left alone."""
    tensor = constant_tensor(weight)
    assert tensor is not None
    return Skipped(str(weight.name), static_shape(tensor), tensor.nbytes, reason)


def skipped_in_functions(model: ir.Model) -> list[Skipped]:
    """Floats in functions that `jaxq.graph.prepare.prepare` did not write out, each with the reason."""
    found = left_functions(model)
    return [Skipped(name, static_shape(tensor), tensor.nbytes, why or VECTOR) for name, tensor, why in found]
