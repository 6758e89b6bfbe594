"""TensorRT's own operators, in the domain ``trt``: TRT_INT4DequantizeLinear and TRT_MXFP8DequantizeLinear.

Its parser knows INT4 with axis and block size, MXFP8 with its exponents in uint8, INT8 per channel in the standard
operators, and positive scales only.
"""

import onnx_ir as ir

from jaxq.edit import drop_unused, new_initializer
from jaxq.forms import qdq
from jaxq.forms.nodes import add_node, dequantize, float_type, place, shape_of
from jaxq.forms.weight import StoredWeight, code_tensor, scale_tensor
from jaxq.graph import Site

DOMAIN = "trt"


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight."""
    for node in site.nodes:
        if weight.fmt.dtype == "mxfp8":
            turned = site.transposed or not site.gathered
            place(graph, site, node, _dequantize_mxfp8(graph, site, node, weight, turned), turned)
        else:
            turned = site.keeps_layout
            op, domain = _operator(weight, "DequantizeLinear")
            place(graph, site, node, dequantize(graph, site, node, weight, turned, op, domain), turned)
    drop_unused(graph, site.weight)


def write_qdq(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """The float weight between TRT_INT4QuantizeLinear and TRT_INT4DequantizeLinear."""
    op, domain = _operator(weight, "")
    qdq.write(graph, site, weight, prefix=op, domain=domain)


def _operator(weight: StoredWeight, op: str) -> tuple[str, str]:
    return (f"TRT_INT4{op}", DOMAIN) if weight.dtype == ir.DataType.INT4 else (op, "")


def _dequantize_mxfp8(graph: ir.Graph, site: Site, node: ir.Node, weight: StoredWeight, turned: bool) -> ir.Value:
    """Codes and exponents; ``turned`` is [c_out, c_in], the layout that TensorRT's exporters write."""
    codes = new_initializer(graph, f"{site.name}_quantized", code_tensor(weight, turned))
    exponents = new_initializer(graph, f"{site.name}_scale", scale_tensor(weight, turned))
    how = {"axis": -1 if turned else 0, "block_size": weight.fmt.block_size, "output_dtype": int(float_type(site))}
    return add_node(
        graph,
        node,
        "TRT_MXFP8DequantizeLinear",
        [codes, exponents],
        [ir.AttrInt64(key, value) for key, value in how.items()],
        name=f"{node.name}_weight",
        dtype=float_type(site),
        shape=shape_of(site, turned),
        domain=DOMAIN,
    )
