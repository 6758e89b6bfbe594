"""onnxruntime's own operators: MatMulNBits for products, GatherBlockQuantized for tables."""

import numpy as np
import onnx_ir as ir

from jaxq.edit import drop_unused, new_initializer
from jaxq.formats import IntegerFormat
from jaxq.forms.weight import Read, StoredWeight, code_tensor, pack, scale_tensor, tensor, zero_point_tensor
from jaxq.graph import Site

DOMAIN = "com.microsoft"


def write(graph: ir.Graph, site: Site, weight: StoredWeight, accuracy_level: int) -> None:
    """Puts a node with the codes in place of each of the site's nodes.

    Args:
        graph: The model's graph.
        site: A weight of MatMul or Gemm, or a table of Gather blocked along its rows.
        weight: Its codes.
        accuracy_level: How exactly onnxruntime computes products: 0 and 1 in float32, 4 with activations in 8 bits.
    """
    for node in site.nodes:
        if site.gathered:
            new = _gather(graph, site, node, weight)
        else:
            new = _matmul(graph, site, node, weight, accuracy_level)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [new], [node.outputs[0]], [new.outputs[0]])
    drop_unused(graph, site.weight)


def stored_bits(fmt: IntegerFormat) -> int:
    """Bits of a code in the file: 2, 4 or 8."""
    return 2 if fmt.num_bits == 2 else fmt.code_bits


def _matmul(graph: ir.Graph, site: Site, node: ir.Node, weight: StoredWeight, accuracy_level: int) -> ir.Node:
    """Codes are bytes [c_out, n_blocks, bytes of a block], low bits first."""
    assert isinstance(weight.fmt, IntegerFormat)
    bits, block, n_blocks = stored_bits(weight.fmt), weight.fmt.block_size, weight.n_blocks
    shape = (site.c_out, n_blocks, block * bits // 8)
    packed = tensor(lambda: _product_codes(weight, bits), ir.DataType.UINT8, shape)
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        new_initializer(graph, f"{site.name}_quantized", packed),
        new_initializer(graph, f"{site.name}_scale", scale_tensor(weight, turned=True)),
    ]
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if weight.zp is not None:
        zp, width = weight.zp, -(-n_blocks * bits // 8)
        packed = tensor(lambda: _product_zero_points(zp, bits), ir.DataType.UINT8, (site.c_out, width))
        inputs.append(new_initializer(graph, f"{site.name}_zero_point", packed))
    if bias is not None:
        inputs += [None] * (5 - len(inputs)) + [bias]
    numbers = {"K": site.c_in, "N": site.c_out, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    attributes = [ir.AttrInt64(key, value) for key, value in numbers.items()]
    return _named(ir.Node(DOMAIN, "MatMulNBits", inputs, attributes, name=f"{node.name}_MatMulNBits"), node)


def _product_codes(weight: StoredWeight, bits: int) -> np.ndarray:
    """Signed codes are shifted up; the end of a ragged block holds zeros."""
    middle = 0 if weight.zp is not None else 2 ** (bits - 1)
    codes = weight.unpacked().T
    shifted = np.full((len(codes), weight.n_blocks * weight.fmt.block_size), middle, np.uint8)
    shifted[:, : codes.shape[1]] = (codes.astype(np.int16) + middle).astype(np.uint8)
    return pack(shifted, bits)


def _product_zero_points(zp: Read, bits: int) -> np.ndarray:
    rows = zp().T
    full = np.zeros((len(rows), -(-rows.shape[1] * bits // 8) * 8 // bits), np.uint8)
    full[:, : rows.shape[1]] = rows
    return pack(full, bits)


def _gather(graph: ir.Graph, site: Site, node: ir.Node, weight: StoredWeight) -> ir.Node:
    """A table [rows, c_in] whose rows are blocked; onnxruntime takes only the rows asked for apart.

    It has no signed codes of 8 bits: they are shifted up by 128, the middle that it takes where no zero points are.
    """
    codes, numbers = code_tensor(weight, turned=True), {"gather_axis": 0, "quantize_axis": 1}
    if weight.fmt.code_bits == 8:
        numbers["bits"] = 8
        if weight.zp is None:
            codes = tensor(lambda: _shifted_up(weight), ir.DataType.UINT8, weight.shape[::-1])
    values = [new_initializer(graph, f"{site.name}_quantized", codes), node.inputs[1]]
    values.append(new_initializer(graph, f"{site.name}_scale", scale_tensor(weight, turned=True)))
    if weight.zp is not None:
        values.append(new_initializer(graph, f"{site.name}_zero_point", zero_point_tensor(weight, turned=True)))
    numbers["block_size"] = weight.fmt.block_size
    attributes = [ir.AttrInt64(key, value) for key, value in numbers.items()]
    return _named(ir.Node(DOMAIN, "GatherBlockQuantized", values, attributes, name=f"{node.name}_blocked"), node)


def _named(new: ir.Node, old: ir.Node) -> ir.Node:
    new.outputs[0].type, new.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
    return new


def _shifted_up(weight: StoredWeight) -> np.ndarray:
    return (weight.codes().T.astype(np.int16) + 128).astype(np.uint8)
