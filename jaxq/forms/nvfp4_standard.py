"""NVFP4 in standard ONNX, opset 23: what GPU toolchains read. onnxruntime has no kernel for it on a CPU."""

import onnx_ir as ir

from jaxq.edit import drop_unused, new_initializer
from jaxq.forms.nodes import add_node, float_type, place, shape_of
from jaxq.forms.weight import StoredWeight, code_tensor, scale_tensor, second_scale_tensor
from jaxq.graph import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Two DequantizeLinear for each node: block scales times the weight's, then codes [c_out, c_in] times these."""
    blocks = (site.columns, weight.n_blocks)
    for node in site.nodes:
        codes = new_initializer(graph, f"{site.name}_quantized", code_tensor(weight, turned=True))
        s = new_initializer(graph, f"{site.name}_scale", scale_tensor(weight, turned=True))
        s2 = new_initializer(graph, f"{site.name}_scale_2", second_scale_tensor(weight))
        name = f"{node.name}_weight_scale"
        scale = add_node(graph, node, "DequantizeLinear", [s, s2], name=name, dtype=ir.DataType.FLOAT, shape=blocks)
        how = {"axis": -1, "block_size": weight.fmt.block_size}
        if float_type(site) != ir.DataType.FLOAT:
            how["output_dtype"] = int(float_type(site))
        attributes = [ir.AttrInt64(key, value) for key, value in how.items()]
        name, shape, dtype = f"{node.name}_weight", shape_of(site, turned=True), float_type(site)
        w = add_node(graph, node, "DequantizeLinear", [codes, scale], attributes, name=name, dtype=dtype, shape=shape)
        place(graph, site, node, w, turned=True)
    drop_unused(graph, site.weight)
