"""One forward pass that collects moments in a dictionary."""

from collections.abc import Sequence

import onnx_ir as ir

from jaxq.calibration.capture import Calibration, WindowRun, capture_moments
from jaxq.graph.activations import Activation
from jaxq.numerics.moments import Moments
from jaxq.progress import Progress, silent
from jaxq.runtime.batches import Batch


def captured_moments(
    model: ir.Model,
    activations: Sequence[Activation],
    batches: Sequence[Batch],
    window_bytes: int = 64 << 20,
    progress: Progress = silent,
) -> tuple[dict[str, Moments], list[WindowRun]]:
    """Moments by key, and statistics of the windows that ran."""
    moments: dict[str, Moments] = {}

    def keep(activation: Activation, key: str, new: Moments) -> None:
        assert key in (activation.shared_key, *activation.keys) and key not in moments
        moments[key] = new

    return moments, capture_moments(model, activations, Calibration(batches, window_bytes), keep, progress)
