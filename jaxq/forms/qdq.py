"""The float weight, a QuantizeLinear and a DequantizeLinear node: for toolchains that quantize by themselves.

The file stays as large as it was; its results are those of the codes.
"""

import onnx_ir as ir

from jaxq.edit import drop_unused, new_initializer
from jaxq.forms.weight import StoredWeight, add_parameters, dequantize_for
from jaxq.graph import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts QuantizeLinear and DequantizeLinear between the site's float weight and its nodes."""
    source = new_initializer(graph, f"{site.name}_transposed", site.array()) if site.transposed else site.weight
    parameters, attrs = add_parameters(graph, site, weight)
    how = attrs if weight.zp is not None else [*attrs, ir.AttrInt64("output_dtype", int(weight.dtype))]
    for node in site.nodes:
        codes = ir.Value(name=f"{node.name}_weight_quantized", type=ir.TensorType(weight.dtype))
        codes.shape = ir.Shape([site.c_in, site.c_out])
        name = f"{node.name}_QuantizeLinear"
        graph.insert_before(node, ir.Node("", "QuantizeLinear", [source, *parameters], how, outputs=[codes], name=name))
        dequantize_for(graph, site, node, [codes, *parameters], attrs)
    drop_unused(graph, site.weight)
