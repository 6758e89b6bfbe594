"""Read quantized weights back from the bytes of any ONNX file, whichever tool wrote it."""

from jaxq.readback.float_model import float_model
from jaxq.readback.found_weight import FoundWeight
from jaxq.readback.inspection import Inspection, inspect_model
from jaxq.readback.weights import Readback, Unread, read_back, read_weights

__all__ = [
    "FoundWeight", "Inspection", "Readback", "Unread", "float_model", "inspect_model", "read_back",
    "read_weights",
]  # fmt: skip
