"""From an ONNX file to its quantized copy; start reading at `jaxq.pipeline.quantize.quantize_model`."""

from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.dry_run import Estimate, estimate
from jaxq.pipeline.job import Budget, Gather, Job, Rule
from jaxq.pipeline.outcome import Outcome
from jaxq.pipeline.quantize import quantize_model
from jaxq.runtime.batches import Batch

__all__ = [
    "Batch", "Budget", "Estimate", "Gather", "Job", "MethodSpec", "Outcome", "Rule", "estimate",
    "quantize_model",
]  # fmt: skip
