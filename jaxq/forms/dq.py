"""Codes [c_in, c_out] and a DequantizeLinear node: standard ONNX, and what onnxruntime fuses into one product."""

import onnx_ir as ir

from jaxq.edit import drop_unused
from jaxq.forms.nodes import dequantize, place
from jaxq.forms.weight import StoredWeight
from jaxq.graph import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight; a copy for each node: onnxruntime fuses no shared one."""
    turned = site.keeps_layout
    for node in site.nodes:
        place(graph, site, node, dequantize(graph, site, node, weight, turned), turned)
    drop_unused(graph, site.weight)
