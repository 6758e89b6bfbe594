"""MXFP8 and MXFP4 in standard ONNX, opset 24, with E8M0 scales. onnxruntime has no kernel for it on a CPU."""

import onnx_ir as ir

from jaxq.forms.nodes import Output, add_node, drop_weight, float_type, int_attributes, place, shape_of
from jaxq.forms.stored_weight import StoredWeight, code_tensor, exponent_tensor
from jaxq.graph.edit import graph_of, new_initializer
from jaxq.graph.sites import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """A DequantizeLinear for each node, of codes [c_out, c_in]."""
    for node in site.nodes:
        node_graph, dtype = graph_of(node), float_type(site, node)
        settings = {"axis": -1, "block_size": weight.fmt.block_size, "output_dtype": int(dtype)}
        attributes = int_attributes(settings)
        codes = new_initializer(node_graph, f"{site.name}_quantized", code_tensor(weight, transposed=True))
        scale = new_initializer(node_graph, f"{site.name}_scale", exponent_tensor(weight, transposed=True))
        name, shape = f"{node.name}_weight", shape_of(site, transposed=True)
        w = add_node(node, "DequantizeLinear", [codes, scale], attributes, output=Output(name, dtype, shape))
        place(site, node, w, transposed=True)
    drop_weight(site)
