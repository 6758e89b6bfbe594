"""Codes [c_in, c_out] and a DequantizeLinear node: standard ONNX, and what onnxruntime fuses into one product."""

import onnx_ir as ir

from jaxq.forms.nodes import dequantize, drop_weight, is_transposed, place
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.sites import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight; a copy for each node: onnxruntime fuses no shared one."""
    for node in site.nodes:
        transposed = is_transposed(site, node)
        place(site, node, dequantize(site, node, weight, transposed), transposed)
    drop_weight(site)
