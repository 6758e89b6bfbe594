"""NVFP4 in standard ONNX, opset 23: what GPU toolchains read. onnxruntime has no kernel for it on a CPU."""

import onnx_ir as ir

from jaxq.forms.nodes import Output, add_node, drop_weight, float_type, int_attributes, place, shape_of
from jaxq.forms.stored_weight import StoredWeight, code_tensor, scale_tensor, second_scale_tensor
from jaxq.graph.edit import graph_of, new_initializer
from jaxq.graph.sites import Site


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Two DequantizeLinear for each node: block scales times the weight's, then codes [c_out, c_in] times these."""
    blocks = (site.columns, weight.n_blocks)
    for node in site.nodes:
        node_graph, dtype = graph_of(node), float_type(site, node)
        codes = new_initializer(node_graph, f"{site.name}_quantized", code_tensor(weight, transposed=True))
        s = new_initializer(node_graph, f"{site.name}_scale", scale_tensor(weight, transposed=True))
        s2 = new_initializer(node_graph, f"{site.name}_scale_2", second_scale_tensor(weight))
        name = f"{node.name}_weight_scale"
        scale = add_node(node, "DequantizeLinear", [s, s2], output=Output(name, ir.DataType.FLOAT, blocks))
        settings = {"axis": -1, "block_size": weight.fmt.block_size}
        if dtype != ir.DataType.FLOAT:
            settings["output_dtype"] = int(dtype)
        attributes = int_attributes(settings)
        name, shape = f"{node.name}_weight", shape_of(site, transposed=True)
        w = add_node(node, "DequantizeLinear", [codes, scale], attributes, output=Output(name, dtype, shape))
        place(site, node, w, transposed=True)
    drop_weight(site)
