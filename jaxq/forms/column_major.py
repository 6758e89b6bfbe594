"""Codes [c_out, c_in], DequantizeLinear and Transpose: for runtimes that want a column's codes in one run.

onnxruntime does not fuse it.
"""

import onnx_ir as ir

from jaxq.edit import drop_unused
from jaxq.forms.nodes import dequantize, place
from jaxq.forms.weight import StoredWeight
from jaxq.graph import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight; Gemm with transB needs no Transpose."""
    turned = site.transposed or not site.gathered
    for node in site.nodes:
        place(graph, site, node, dequantize(graph, site, node, weight, turned), turned)
    drop_unused(graph, site.weight)
