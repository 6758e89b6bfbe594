"""The float weight, a QuantizeLinear and a DequantizeLinear node: for toolchains that quantize by themselves.

The file stays as large as it was; its results are those of the codes.
"""

import numpy as np
import onnx_ir as ir

from jaxq.forms.nodes import (
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
    """Puts the two nodes, with ``prefix`` before their names, between the site's float weight and its nodes.

    Nodes that want the weight in one layout and type share it, and those of one graph its scales too: onnxruntime
    cannot load a node that it fuses whose scales lie in an outer graph.
    """
    sources: dict[tuple[bool, ir.DataType], ir.Value] = {}
    held: dict[tuple[ir.Graph, bool, ir.DataType], list[ir.Value]] = {}
    to = [] if weight.zp is not None or domain else [ir.AttrInt64("output_dtype", int(weight.dtype))]
    for node in site.nodes:
        transposed, dtype = is_transposed(site, node), float_type(site, node)
        how, shape = blocked_attributes(site, weight, transposed), layout_of(site, weight, transposed)
        if (transposed, dtype) not in sources:
            sources[transposed, dtype] = _source(site.weight.graph or graph, site, transposed, dtype, shape)
        key = (graph_of(node), transposed, dtype)
        if key not in held:
            held[key] = add_parameters(node, site, weight.with_float_type(dtype, casts), transposed)
        inputs = [sources[transposed, dtype], *held[key]]
        name = f"{node.name}_weight_quantized"
        op = f"{prefix}QuantizeLinear"
        codes = add_node(node, op, inputs, [*how, *to], name=name, dtype=weight.dtype, shape=shape, domain=domain)
        name, op = f"{node.name}_weight", f"{prefix}DequantizeLinear"
        back = add_node(node, op, [codes, *inputs[1:]], how, name=name, dtype=dtype, shape=shape, domain=domain)
        place(site, node, back, transposed)
    drop_weight(site)


def _source(holder: ir.Graph, site: Site, transposed: bool, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """The float weight in a layout and type: itself where it has these, else a copy."""
    same = site.transposed == transposed
    if same and dtype == site.weight.dtype and shape == site.shape:
        return site.weight

    def make() -> np.ndarray:
        if same:
            return read_weight(site.weight).astype(dtype.numpy())
        w = site.array().astype(dtype.numpy())
        return np.ascontiguousarray(w.T) if transposed else w

    name = f"{site.name}_{'matrix' if site.kernel else 'transposed'}"
    return new_initializer(holder, name, tensor(make, dtype, shape))
