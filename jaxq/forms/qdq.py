"""The float weight, a QuantizeLinear and a DequantizeLinear node: for toolchains that quantize by themselves.

The file stays as large as it was; its results are those of the codes.
"""

import onnx_ir as ir

from jaxq.edit import drop_unused, new_initializer
from jaxq.forms.nodes import add_node, add_parameters, blocked_attributes, float_type, place, shape_of, whole_kernel
from jaxq.forms.weight import StoredWeight, tensor
from jaxq.graph import Site, read_weight


def write(graph: ir.Graph, site: Site, weight: StoredWeight, prefix: str = "", domain: str = "") -> None:
    """Puts the two nodes, with ``prefix`` before their names, between the site's float weight and its nodes."""
    turned = site.keeps_layout
    source = site.weight
    how, shape = blocked_attributes(site, weight, turned), shape_of(site, turned)
    if whole_kernel(site, weight):
        shape = site.shape
    elif site.kernel:
        floats = tensor(lambda: read_weight(site.weight), float_type(site), shape)
        source = new_initializer(graph, f"{site.name}_matrix", floats)
    elif site.transposed and not turned:
        source = new_initializer(graph, f"{site.name}_transposed", tensor(site.array, float_type(site), shape))
    parameters = add_parameters(graph, site, weight, turned)
    to = [] if weight.zp is not None or domain else [ir.AttrInt64("output_dtype", int(weight.dtype))]
    for node in site.nodes:
        codes = add_node(
            graph,
            node,
            f"{prefix}QuantizeLinear",
            [source, *parameters],
            [*how, *to],
            name=f"{node.name}_weight_quantized",
            dtype=weight.dtype,
            shape=shape,
            domain=domain,
        )
        back = add_node(
            graph,
            node,
            f"{prefix}DequantizeLinear",
            [codes, *parameters],
            how,
            name=f"{node.name}_weight",
            dtype=float_type(site),
            shape=shape,
            domain=domain,
        )
        place(graph, site, node, back, turned)
    drop_unused(graph, site.weight)
