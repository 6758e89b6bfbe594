"""Codes [c_out, c_in], DequantizeLinear and Transpose: for runtimes that want a column's codes in one run.

onnxruntime does not fuse it.
"""

import onnx_ir as ir

from jaxq.forms.nodes import dequantize, drop_weight, place
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.readers import is_table
from jaxq.graph.sites import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight; Gemm with transB needs no Transpose."""
    for node in site.nodes:
        transposed = site.transposed or not is_table(node)
        place(site, node, dequantize(site, node, weight, transposed), transposed)
    drop_weight(site)
