"""How ONNX files store quantized weights: one file a form, each with a function ``write(graph, site, weight)``."""

from jaxq.forms.form import Form, Use
from jaxq.forms.registry import FORMS, find_form
from jaxq.forms.stored_weight import StoredWeight

__all__ = [
    "FORMS", "Form", "StoredWeight", "Use", "find_form",
]  # fmt: skip
