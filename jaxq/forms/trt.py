"""TensorRT's own operators, in the domain ``trt``: TRT_INT4DequantizeLinear and TRT_MXFP8DequantizeLinear.

Its parser knows INT4 with axis and block size, MXFP8 with its exponents in uint8, INT8 per channel in the standard
operators, and positive scales only.
"""

import onnx_ir as ir

from jaxq.forms import qdq
from jaxq.forms.nodes import (
    Output,
    add_node,
    dequantize,
    drop_weight,
    float_type,
    int_attributes,
    is_transposed,
    place,
    shape_of,
)
from jaxq.forms.stored_weight import StoredWeight, code_tensor, scale_tensor
from jaxq.graph.edit import graph_of, new_initializer
from jaxq.graph.readers import is_table
from jaxq.graph.sites import Site

DOMAIN = "trt"


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight."""
    for node in site.nodes:
        if weight.fmt.dtype == "mxfp8":
            transposed = site.transposed or not is_table(node)
            place(site, node, _dequantize_mxfp8(site, node, weight, transposed), transposed)
        else:
            transposed = is_transposed(site, node)
            op, domain = _operator(weight, "DequantizeLinear")
            place(site, node, dequantize(site, node, weight, transposed, op, domain, casts=False), transposed)
    drop_weight(site)


def write_qdq(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """The float weight between TRT_INT4QuantizeLinear and TRT_INT4DequantizeLinear."""
    op, domain = _operator(weight, "")
    qdq.write(graph, site, weight, prefix=op, domain=domain, casts=False)


def _operator(weight: StoredWeight, op: str) -> tuple[str, str]:
    return (f"TRT_INT4{op}", DOMAIN) if weight.dtype == ir.DataType.INT4 else (op, "")


def _dequantize_mxfp8(site: Site, node: ir.Node, weight: StoredWeight, transposed: bool) -> ir.Value:
    """Codes and exponents; ``transposed`` is [c_out, c_in], the layout that TensorRT's exporters write."""
    graph, dtype = graph_of(node), float_type(site, node)
    codes = new_initializer(graph, f"{site.name}_quantized", code_tensor(weight, transposed))
    exponents = new_initializer(graph, f"{site.name}_scale", scale_tensor(weight, transposed))
    settings = {"axis": -1 if transposed else 0, "block_size": weight.fmt.block_size, "output_dtype": int(dtype)}
    return add_node(
        node,
        "TRT_MXFP8DequantizeLinear",
        [codes, exponents],
        int_attributes(settings),
        output=Output(f"{node.name}_weight", dtype, shape_of(site, transposed)),
        domain=DOMAIN,
    )
