"""The float weight, a QuantizeLinear and a DequantizeLinear node: for toolchains that quantize by themselves.

The file stays as large as it was; its results are those of the codes.
"""

import onnx_ir as ir

from jaxq.edit import new_initializer
from jaxq.forms.weight import StoredWeight, add_parameters, replace_weight
from jaxq.graph import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts QuantizeLinear and DequantizeLinear between the site's float weight and its nodes."""
    parameters, attrs = add_parameters(graph, site, weight)
    source = site.weight
    if site.transposed:
        source = new_initializer(graph, f"{site.name}_transposed", site.array())
    codes = ir.Value(name=f"{site.name}_quantized", type=ir.TensorType(weight.dtype))
    codes.shape = ir.Shape([site.c_in, site.c_out])
    how = attrs if weight.zp is not None else [*attrs, ir.AttrInt64("output_dtype", int(weight.dtype))]
    node = ir.Node(
        "", "QuantizeLinear", [source, *parameters], how, outputs=[codes], name=f"{site.name}_QuantizeLinear"
    )
    graph.insert_before(site.nodes[0], node)
    replace_weight(graph, site, codes, parameters, attrs)
