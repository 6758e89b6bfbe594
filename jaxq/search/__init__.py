"""Run a method on each group of siblings, and record the result for every weight."""

from jaxq.search.group import quantize_group
from jaxq.search.result import GroupResult, Layer, effective_weight

__all__ = [
    "GroupResult", "Layer", "effective_weight", "quantize_group",
]  # fmt: skip
