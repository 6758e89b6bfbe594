"""ONNX forms of quantized weights: one file a form, each with `write(graph, site, weight)`."""

from jaxq.forms.limits import Use, alternatives, check_supported, why_unsupported
from jaxq.forms.registry import FORMS, Form, find_form
from jaxq.forms.stored_weight import StoredWeight

__all__ = [
    "FORMS", "Form", "StoredWeight", "Use", "alternatives", "check_supported", "find_form", "why_unsupported",
]  # fmt: skip
