"""Accuracy of a quantized model against the float one: perplexity, KL divergence, agreement, errors of outputs."""

from jaxq.evaluation.accuracy import Accuracy, Evaluation, evaluate
from jaxq.evaluation.outputs import OutputComparison, compare_outputs

__all__ = [
    "Accuracy", "Evaluation", "OutputComparison", "compare_outputs", "evaluate",
]  # fmt: skip
