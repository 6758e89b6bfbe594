"""The result of a run, as a frozen record that goes into the report."""

from dataclasses import dataclass

from jaxq.calibration.capture import WindowRun
from jaxq.graph.skipped import Skipped
from jaxq.pipeline.clock import Phase
from jaxq.search.result import Layer


@dataclass(frozen=True)
class Outcome:
    """The result of `quantize_model`.

    Attributes:
        layers: Quantized weights, in graph order.
        skipped: Skipped weights with reasons, those that were quantized already included.
        unmatched: Patterns that match no weight.
        notices: Sentences that a reader of the report should not miss, such as that a stopped run was resumed.
        windows: Windows of the calibration that ran; none without data, or if all moments were on disk.
        moments_from_cache: Number of activations whose moments were on disk already.
        tokens: Real tokens of calibration.
        model_hash, data_hash: SHA-256 of the source file and of the calibration data ("" without).
        source_bytes, target_bytes: File sizes, external data included.
        quantized_source_bytes: Bytes that the quantized weights had in the source.
        weight_bytes: Bytes of all weights in the source.
        bits_per_weight: Mean over quantized weights, scales and zero points included.
        phases: Time and memory.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    unmatched: tuple[str, ...]
    notices: tuple[str, ...]
    windows: tuple[WindowRun, ...]
    moments_from_cache: int
    tokens: int
    model_hash: str
    data_hash: str
    source_bytes: int
    target_bytes: int
    quantized_source_bytes: int
    weight_bytes: int
    bits_per_weight: float
    phases: tuple[Phase, ...]
