"""Codes [c_in, c_out] and a DequantizeLinear node: standard ONNX, and what onnxruntime fuses into one product."""

import onnx_ir as ir

from jaxq.edit import new_initializer
from jaxq.forms.weight import StoredWeight, add_parameters, code_tensor, replace_weight
from jaxq.graph import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight."""
    codes = new_initializer(graph, f"{site.name}_quantized", code_tensor(weight, f"{site.name}_quantized"))
    parameters, attrs = add_parameters(graph, site, weight)
    replace_weight(graph, site, codes, parameters, attrs)
