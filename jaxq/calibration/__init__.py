"""One forward pass over the calibration data, in windows, that leaves the second moments of activations."""

from jaxq.calibration.capture import WindowRun, capture_moments
from jaxq.calibration.moment_store import MomentStore
from jaxq.calibration.windows import Window, plan_windows

__all__ = [
    "MomentStore", "Window", "WindowRun", "capture_moments", "plan_windows",
]  # fmt: skip
