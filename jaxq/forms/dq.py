"""Codes [c_in, c_out] and a DequantizeLinear node: standard ONNX, and what onnxruntime fuses into one product."""

import onnx_ir as ir

from jaxq.edit import drop_unused, new_initializer
from jaxq.forms.weight import StoredWeight, add_parameters, code_tensor, dequantize_for
from jaxq.graph import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight; a copy for each node: onnxruntime fuses no shared one."""
    for node in site.nodes:
        codes = new_initializer(graph, f"{site.name}_quantized", code_tensor(weight, f"{site.name}_quantized"))
        parameters, attrs = add_parameters(graph, site, weight)
        dequantize_for(graph, site, node, [codes, *parameters], attrs)
    drop_unused(graph, site.weight)
