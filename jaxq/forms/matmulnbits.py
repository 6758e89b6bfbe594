"""onnxruntime's own operators: MatMulNBits for products, GatherBlockQuantized for tables."""

import numpy as np
import onnx_ir as ir

from jaxq.formats.integers import IntegerFormat
from jaxq.forms.nodes import Output, add_node, cast_scale, constant, drop_weight, float_type, int_attributes
from jaxq.forms.stored_weight import Read, StoredWeight, code_tensor, pack, scale_tensor, tensor, zero_point_tensor
from jaxq.graph.edit import graph_of, new_initializer
from jaxq.graph.readers import is_table
from jaxq.graph.sites import Site

DOMAIN = "com.microsoft"


def write(graph: ir.Graph, site: Site, weight: StoredWeight, accuracy_level: int) -> None:
    """Puts a node with the codes in place of each of the site's nodes.

    The nodes of a tied embedding share one copy of the codes where both operators read the same bytes, see
    `_can_share`; all other nodes get a copy each.

    Args:
        graph: The model's graph.
        site: A weight of MatMul or Gemm, a table of Gather blocked along its rows, or both in one.
        weight: The quantized weight.
        accuracy_level: How exactly onnxruntime computes products: 0 and 1 in float32, 4 with activations in 8 bits.
    """
    tied = _Tied(graph, site) if _can_share(site, weight) else None
    for node in site.nodes:
        node_graph, cast = graph_of(node), weight.with_float_type(float_type(site, node), casts=True)
        if not is_table(node):
            new = _matmul(tied or _Copies(node_graph), site, node, cast, accuracy_level)
        elif tied:
            new = _gather_bytes(tied, site, node, cast)
        else:
            new = _gather(node_graph, site, node, cast)
        ir.convenience.replace_nodes_and_values(node_graph, node, [node], [new], [node.outputs[0]], [new.outputs[0]])
    drop_weight(site)


def nbytes(site: Site, weight: StoredWeight) -> int:
    """Bytes that `write` adds to the file."""
    if _can_share(site, weight):
        types = {float_type(site, node) for node in site.nodes}
        return _product_nbytes(weight) + _second_scale_nbytes(weight) * (len(types) - 1)
    return sum(weight.nbytes if is_table(node) else _product_nbytes(weight) for node in site.nodes)


def _product_nbytes(weight: StoredWeight) -> int:
    """Bytes of a MatMulNBits: a column's last block is filled up, and so is the last byte of its zero points."""
    assert isinstance(weight.fmt, IntegerFormat)
    bits, n_blocks = stored_bits(weight.fmt), weight.n_blocks
    zero_points = 0 if weight.zp is None else -(-n_blocks * bits // 8)
    column = n_blocks * weight.fmt.block_size * bits // 8 + n_blocks * int(weight.scale_dtype.itemsize) + zero_points
    return column * weight.shape[1] + _second_scale_nbytes(weight)


def _second_scale_nbytes(weight: StoredWeight) -> int:
    """Bytes of the second scale that multiplies float8 scales; each node has a copy, except where nodes share all."""
    return 0 if weight.s2 is None else 4


class _Copies:
    """New initializers of a graph for each node."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def get(self, name: str, make: ir.TensorProtocol) -> ir.Value:
        return new_initializer(self.graph, name, make)


class _Tied(_Copies):
    """Initializers that all nodes of a tied embedding share, in the graph where the float table was."""

    def __init__(self, graph: ir.Graph, site: Site) -> None:
        super().__init__(site.weight.graph or graph)
        self.root = graph
        self._values: dict[tuple[str, ir.DataType], ir.Value] = {}

    def get(self, name: str, make: ir.TensorProtocol) -> ir.Value:
        key = (name, make.dtype)
        if key not in self._values:
            self._values[key] = super().get(name, make)
        return self._values[key]


def _can_share(site: Site, weight: StoredWeight) -> bool:
    """True if MatMulNBits and GatherBlockQuantized read the same bytes: blocks are whole, and rows are whole bytes.

    Before onnxruntime 1.27, GatherBlockQuantized does not support codes of 2 bits, and reads rows of 4-bit zero points
    wrongly that end within a byte.
    """
    assert isinstance(weight.fmt, IntegerFormat)
    bits = stored_bits(weight.fmt)
    whole = site.c_in % weight.fmt.block_size == 0 and (weight.zp is None or weight.n_blocks * bits % 8 == 0)
    return site.has_table and not site.gathered and bits > 2 and whole


def stored_bits(fmt: IntegerFormat) -> int:
    """Bits of a code in the file: 2, 4 or 8."""
    return 2 if fmt.num_bits == 2 else fmt.code_bits


def _matmul(initializers: _Copies, site: Site, node: ir.Node, weight: StoredWeight, accuracy_level: int) -> ir.Node:
    """Codes are bytes [c_out, n_blocks, bytes of a block], low bits first."""
    assert isinstance(weight.fmt, IntegerFormat)
    bits, block = stored_bits(weight.fmt), weight.fmt.block_size
    inputs: list[ir.Value | None] = [node.inputs[0], *_bytes(initializers, site, node, weight)]
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is not None:
        inputs += [None] * (5 - len(inputs)) + [bias]
    settings = {"K": site.c_in, "N": site.c_out, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    attributes = int_attributes(settings)
    return _named(ir.Node(DOMAIN, "MatMulNBits", inputs, attributes, name=f"{node.name}_MatMulNBits"), node)


def _bytes(initializers: _Copies, site: Site, node: ir.Node, weight: StoredWeight) -> list[ir.Value]:
    """Codes, scales and zero points, if there are any, as MatMulNBits reads them."""
    assert isinstance(weight.fmt, IntegerFormat)
    bits, n_blocks = stored_bits(weight.fmt), weight.n_blocks
    shape = (site.c_out, n_blocks, weight.fmt.block_size * bits // 8)
    codes = tensor(lambda: _product_codes(weight, bits), ir.DataType.UINT8, shape)
    values = [initializers.get(f"{site.name}_quantized", codes)]
    scale = initializers.get(f"{site.name}_scale", scale_tensor(weight, transposed=True))
    values.append(cast_scale(site, node, weight, scale, initializers.get))
    if (zp := weight.zp) is not None:
        width = -(-n_blocks * bits // 8)
        packed = tensor(lambda: _product_zero_points(zp, bits), ir.DataType.UINT8, (site.c_out, width))
        values.append(initializers.get(f"{site.name}_zero_point", packed))
    return values


def _product_codes(weight: StoredWeight, bits: int) -> np.ndarray:
    """Packed codes, column by column; signed ones are shifted up, and a last block is filled up with zeros."""
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
    """A table [rows, c_in] that is blocked along its rows; onnxruntime dequantizes the rows that are looked up alone.

    The operator has no signed codes of 8 bits. They are shifted up by 128, the zero point that it assumes without one.
    """
    codes, settings = code_tensor(weight, transposed=True), {"gather_axis": 0, "quantize_axis": 1}
    if weight.fmt.code_bits == 8:
        settings["bits"] = 8
        if weight.zp is None:
            codes = tensor(lambda: _shifted_up(weight), ir.DataType.UINT8, weight.shape[::-1])
    values = [new_initializer(graph, f"{site.name}_quantized", codes), node.inputs[1]]
    scale = new_initializer(graph, f"{site.name}_scale", scale_tensor(weight, transposed=True))
    values.append(cast_scale(site, node, weight, scale))
    if weight.zp is not None:
        values.append(new_initializer(graph, f"{site.name}_zero_point", zero_point_tensor(weight, transposed=True)))
    settings["block_size"] = weight.fmt.block_size
    attributes = int_attributes(settings)
    return _named(ir.Node(DOMAIN, "GatherBlockQuantized", values, attributes, name=f"{node.name}_blocked"), node)


def _gather_bytes(initializers: _Tied, site: Site, node: ir.Node, weight: StoredWeight) -> ir.Node:
    """A table that reads the bytes of a MatMulNBits: the blocks of a row, one after the other."""
    assert isinstance(weight.fmt, IntegerFormat)
    bits = stored_bits(weight.fmt)
    codes, *parameters = _bytes(initializers, site, node, weight)
    shape = (site.c_out, site.c_in * bits // 8)
    to = constant(initializers.root, f"shape_{shape[0]}_{shape[1]}", shape)
    name = f"{node.name}_weight_bytes"
    rows = add_node(node, "Reshape", [codes, to], output=Output(name, ir.DataType.UINT8, shape))
    settings = {"gather_axis": 0, "quantize_axis": 1, "bits": bits, "block_size": weight.fmt.block_size}
    attributes = int_attributes(settings)
    inputs = [rows, node.inputs[1], *parameters]
    return _named(ir.Node(DOMAIN, "GatherBlockQuantized", inputs, attributes, name=f"{node.name}_blocked"), node)


def _named(new: ir.Node, old: ir.Node) -> ir.Node:
    new.outputs[0].type, new.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
    return new


def _shifted_up(weight: StoredWeight) -> np.ndarray:
    return (weight.codes().T.astype(np.int16) + 128).astype(np.uint8)
