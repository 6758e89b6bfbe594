"""Weights that are skipped, each with the reason."""

from dataclasses import dataclass

import onnx_ir as ir

from jaxq.graph.constants import constant_tensor, static_shape
from jaxq.graph.normalize.functions import constants_in_functions
from jaxq.graph.skip_reasons import VECTOR


@dataclass(frozen=True)
class Skipped:
    """A weight that is skipped, and why."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


def skip(weight: ir.Value, reason: str) -> Skipped:
    """The record of a weight that is skipped."""
    tensor = constant_tensor(weight)
    assert tensor is not None
    return Skipped(str(weight.name), static_shape(tensor), tensor.nbytes, reason)


def skipped_in_functions(model: ir.Model) -> list[Skipped]:
    """Floats inside functions that `jaxq.graph.prepare.prepare` did not write out, each with the reason."""
    constants = constants_in_functions(model)
    return [Skipped(name, static_shape(tensor), tensor.nbytes, why or VECTOR) for name, tensor, why in constants]
