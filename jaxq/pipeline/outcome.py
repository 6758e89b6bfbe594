"""What the pipeline reports: plain frozen records, ready for a file or a table."""

from dataclasses import dataclass

from jaxq.calibration.capture import WindowRun
from jaxq.graph.skipped import Skipped
from jaxq.pipeline.clock import Phase
from jaxq.search.result import Layer


@dataclass(frozen=True)
class Outcome:
    """What `quantize_model` did.

    Attributes:
        layers: Quantized weights, in graph order.
        skipped: Weights left alone, with reasons; those that were quantized already among them.
        unmatched: Exclude patterns that excluded nothing.
        notices: Sentences about work of an earlier run that was used, or was not.
        windows: Runs of the calibration; empty if there was none or all moments were on disk.
        moments_found: Number of activations whose moments were on disk already.
        tokens: Real tokens of calibration.
        model_hash, data_hash: SHA-256 of the source file and of the calibration data ("" without).
        source_bytes, target_bytes: File sizes, external data included.
        quantized_bytes: Bytes that the quantized weights had in the source.
        weight_bytes: Bytes of all weights in the source.
        bits_per_weight: Mean over quantized weights, scales and zero points included.
        phases: Time and memory.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    unmatched: tuple[str, ...]
    notices: tuple[str, ...]
    windows: tuple[WindowRun, ...]
    moments_found: int
    tokens: int
    model_hash: str
    data_hash: str
    source_bytes: int
    target_bytes: int
    quantized_bytes: int
    weight_bytes: int
    bits_per_weight: float
    phases: tuple[Phase, ...]
