"""NVFP4, MXFP4 and MXFP8 in operators that every onnxruntime has on a CPU; the bytes are those of the standard forms.

Four-bit codes stay packed: a table of 256 pairs makes floats of each byte. onnxruntime folds all of it into the float
weight when it loads the file.
"""

import numpy as np
import onnx_ir as ir

from jaxq.forms.nodes import Output, add_node, as_float, constant, drop_weight, float_type, place, shape_of, shared
from jaxq.forms.stored_weight import StoredWeight, code_tensor, pack, scale_tensor, second_scale_tensor, tensor
from jaxq.graph.edit import graph_of, new_initializer
from jaxq.graph.sites import Site

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FLOAT = ir.DataType.FLOAT


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts the nodes that make the float weight [c_out, c_in] in front of each of the site's nodes."""
    for node in site.nodes:
        shape = shape_of(site, transposed=True)
        w = _floats(graph, site, node, weight)
        if (dtype := float_type(site, node)) != _FLOAT:
            w = as_float(node, w, dtype, shape)
        place(site, node, w, transposed=True)
    drop_weight(site)


def _floats(graph: ir.Graph, site: Site, node: ir.Node, weight: StoredWeight) -> ir.Value:
    """The values of the codes times their scales. onnxruntime would compute a DequantizeLinear at every run."""
    rows, columns = shape_of(site, transposed=True)
    n_blocks, block = weight.n_blocks, weight.fmt.block_size
    values = (_e2m1_values if weight.fmt.code_bits == 4 else _e4m3_values)(graph, site, node, weight)
    padded = n_blocks * block
    if padded != columns:
        values = _reshape(graph, node, values, (rows, columns))
        pads = constant(graph, f"pads_{padded - columns}", [0, 0, 0, padded - columns])
        name = f"{node.name}_weight_padded"
        values = add_node(node, "Pad", [values, pads], output=Output(name, _FLOAT, (rows, padded)))
    values = _reshape(graph, node, values, (rows, n_blocks, block))
    if weight.s2 is not None:
        scale = _nvfp4_scale(graph, site, node, weight)
    else:
        scale = _powers(graph, site, node, weight, (rows, n_blocks, 1))
    name = f"{node.name}_weight_scaled"
    w = add_node(node, "Mul", [values, scale], output=Output(name, _FLOAT, (rows, n_blocks, block)))
    w = _reshape(graph, node, w, (rows, padded))
    if padded == columns:
        return w
    ends = [constant(graph, f"vector_{i}", [i]) for i in (0, columns, 1)]
    name = f"{node.name}_weight_cut"
    return add_node(node, "Slice", [w, *ends[:2], ends[2]], output=Output(name, _FLOAT, (rows, columns)))


def _e4m3_values(graph: ir.Graph, site: Site, node: ir.Node, weight: StoredWeight) -> ir.Value:
    """The values of E4M3 codes [c_out, c_in]."""
    codes = new_initializer(graph_of(node), f"{site.name}_quantized", code_tensor(weight, transposed=True))
    values = as_float(node, codes, _FLOAT, shape_of(site, transposed=True))
    values.name = f"{node.name}_weight_values"
    return values


def _e2m1_values(graph: ir.Graph, site: Site, node: ir.Node, weight: StoredWeight) -> ir.Value:
    """The values of E2M1 codes, flattened, from a table of the two values of each byte."""
    count = weight.shape[0] * weight.shape[1]
    size = -(-count // 2)
    packed = tensor(lambda: pack(weight.unpacked().T), ir.DataType.UINT8, (size,))
    codes = new_initializer(graph_of(node), f"{site.name}_quantized", packed)
    to = ir.AttrInt64("to", int(ir.DataType.INT32))
    name = f"{node.name}_weight_bytes"
    indices = add_node(node, "Cast", [codes], [to], output=Output(name, ir.DataType.INT32, (size,)))
    signed = np.concatenate([_E2M1, -_E2M1])
    pairs = np.stack([np.tile(signed, 16), np.repeat(signed, 16)], axis=1)
    table = shared(graph, "e2m1_pairs", pairs)
    name = f"{node.name}_weight_pairs"
    values = add_node(node, "Gather", [table, indices], output=Output(name, _FLOAT, (size, 2)))
    if count == 2 * size:
        return values
    values = _reshape(graph, node, values, (2 * size,))
    ends = [constant(graph, f"vector_{i}", [i]) for i in (0, count)]
    name = f"{node.name}_weight_values"
    return add_node(node, "Slice", [values, *ends], output=Output(name, _FLOAT, (count,)))


def _nvfp4_scale(graph: ir.Graph, site: Site, node: ir.Node, weight: StoredWeight) -> ir.Value:
    """Block scales times the second scale, [c_out, n_blocks, 1]."""
    s = new_initializer(graph_of(node), f"{site.name}_scale", scale_tensor(weight, transposed=True))
    s2 = new_initializer(graph_of(node), f"{site.name}_scale_2", second_scale_tensor(weight))
    shape = (weight.shape[1], weight.n_blocks)
    floats = as_float(node, s, _FLOAT, shape)
    floats.name = f"{node.name}_weight_block_scale"
    product = add_node(node, "Mul", [floats, s2], output=Output(f"{node.name}_weight_scale", _FLOAT, shape))
    return _reshape(graph, node, product, (*shape, 1))


def _powers(graph: ir.Graph, site: Site, node: ir.Node, weight: StoredWeight, shape: tuple[int, ...]) -> ir.Value:
    """``2^(exponent - 127)`` of the exponents [c_out, n_blocks] in uint8."""
    s = new_initializer(graph_of(node), f"{site.name}_scale", tensor(lambda: weight.s().T, ir.DataType.UINT8, shape))
    floats = as_float(node, s, _FLOAT, shape)
    floats.name = f"{node.name}_weight_exponent"
    bias, two = shared(graph, "e8m0_bias", np.float32(127).reshape(1)), shared(graph, "two", np.float32(2).reshape(1))
    name = f"{node.name}_weight_power"
    power = add_node(node, "Sub", [floats, bias], output=Output(name, _FLOAT, shape))
    return add_node(node, "Pow", [two, power], output=Output(f"{node.name}_weight_scale", _FLOAT, shape))


def _reshape(graph: ir.Graph, node: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    to = constant(graph, f"shape_{'_'.join(map(str, shape))}", shape)
    name = f"{node.name}_weight_{'x'.join(map(str, shape))}"
    return add_node(node, "Reshape", [value, to], output=Output(name, _FLOAT, shape))
