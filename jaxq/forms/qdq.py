"""The float weight, a QuantizeLinear and a DequantizeLinear node: for toolchains that quantize by themselves.

The file stays as large as before; its results are those of the codes.
"""

import numpy as np
import onnx_ir as ir

from jaxq.forms.nodes import (
    Output,
    add_node,
    add_parameters,
    blocked_attributes,
    drop_weight,
    float_type,
    is_transposed,
    layout_of,
    place,
)
from jaxq.forms.stored_weight import StoredWeight, tensor
from jaxq.graph.edit import graph_of, new_initializer
from jaxq.graph.sites import Site
from jaxq.graph.tensors import read_weight


def write(
    graph: ir.Graph, site: Site, weight: StoredWeight, prefix: str = "", domain: str = "", casts: bool = True
) -> None:
    """Inserts the two nodes, with ``prefix`` before their operators, between the float weight and the site's nodes.

    Nodes that read the weight in one layout and type share it. Nodes of one graph share the scales too, but not those
    of an outer graph: onnxruntime cannot load a fused node with such scales.
    """
    sources: dict[tuple[bool, ir.DataType], ir.Value] = {}
    parameters: dict[tuple[ir.Graph, bool, ir.DataType], list[ir.Value]] = {}
    output_type = [] if weight.zp is not None or domain else [ir.AttrInt64("output_dtype", int(weight.dtype))]
    for node in site.nodes:
        transposed, dtype = is_transposed(site, node), float_type(site, node)
        attributes, shape = blocked_attributes(site, weight, transposed), layout_of(site, weight, transposed)
        if (transposed, dtype) not in sources:
            sources[transposed, dtype] = _source(site.weight.graph or graph, site, transposed, dtype, shape)
        key = (graph_of(node), transposed, dtype)
        if key not in parameters:
            parameters[key] = add_parameters(node, site, weight.with_float_type(dtype, casts), transposed)
        inputs = [sources[transposed, dtype], *parameters[key]]
        name = f"{node.name}_weight_quantized"
        op = f"{prefix}QuantizeLinear"
        codes = add_node(
            node, op, inputs, [*attributes, *output_type], output=Output(name, weight.dtype, shape), domain=domain
        )
        name, op = f"{node.name}_weight", f"{prefix}DequantizeLinear"
        dequantized = add_node(
            node, op, [codes, *inputs[1:]], attributes, output=Output(name, dtype, shape), domain=domain
        )
        place(site, node, dequantized, transposed)
    drop_weight(site)


def _source(graph: ir.Graph, site: Site, transposed: bool, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """The float weight in a layout and type: the initializer itself if it has these, else a copy."""
    same = site.transposed == transposed
    if same and dtype == site.weight.dtype and shape == site.shape:
        return site.weight

    def make() -> np.ndarray:
        if same:
            return read_weight(site.weight).astype(dtype.numpy())
        w = site.array().astype(dtype.numpy())
        return np.ascontiguousarray(w.T) if transposed else w

    name = f"{site.name}_{'matrix' if site.kernel else 'transposed'}"
    return new_initializer(graph, name, tensor(make, dtype, shape))
