"""A quantized weight as files hold it, and the nodes that stand for it."""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from jaxq.edit import new_initializer
from jaxq.formats import IntegerFormat
from jaxq.graph import Site


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """Codes and scales of one weight in numpy.

    Attributes:
        codes: [c_in, c_out] int8 or uint8 for more than 4 bits; else packed bytes, two codes each, row by row.
        s: [n_blocks, c_out], in the activations' type.
        zp: [n_blocks, c_out] uint8, or None.
        shape: [c_in, c_out].
        fmt: How the codes were made.
    """

    codes: np.ndarray
    s: np.ndarray
    zp: np.ndarray | None
    shape: tuple[int, int]
    fmt: IntegerFormat

    @property
    def dtype(self) -> ir.DataType:
        """ONNX type of the codes: the narrowest of 4 or 8 bits that holds them."""
        if self.fmt.num_bits <= 4:
            return ir.DataType.UINT4 if self.fmt.use_zero_point else ir.DataType.INT4
        return ir.DataType.UINT8 if self.fmt.use_zero_point else ir.DataType.INT8

    @property
    def nbytes(self) -> int:
        """Bytes in the file: codes, scales and zero points."""
        zero_points = 0 if self.zp is None else -(-self.zp.size * self.dtype.bitwidth // 8)
        return self.codes.nbytes + self.s.nbytes + zero_points

    def divide_columns(self, divisor: np.ndarray) -> "StoredWeight":
        """The weight with its columns divided by ``divisor`` [c_out]: the scales take it up, the codes stay."""
        return replace(self, s=(self.s / divisor).astype(self.s.dtype))

    def can_divide_columns(self, divisor: np.ndarray) -> bool:
        """Whether the divided scales are normal numbers of their type: float16 holds 6e-5 to 65504."""
        s = self.divide_columns(divisor).s
        return bool((np.isfinite(s) & (np.abs(s) >= np.finfo(s.dtype).tiny)).all())


def code_tensor(weight: StoredWeight, name: str) -> ir.TensorProtocol:
    """The codes as an ONNX tensor [c_in, c_out]."""
    return _tensor(weight.codes, weight.dtype, weight.shape, name)


def add_parameters(graph: ir.Graph, site: Site, weight: StoredWeight) -> tuple[list[ir.Value], list[ir.Attr]]:
    """Scale and zero point initializers, and the attributes of the (De)QuantizeLinear nodes that read them."""
    per_channel = weight.fmt.block_size == -1
    s = weight.s.reshape(-1) if per_channel else weight.s
    values = [new_initializer(graph, f"{site.name}_scale", s)]
    if weight.zp is not None:
        zp = weight.zp.reshape(-1) if per_channel else weight.zp
        packed = _pack(zp) if weight.dtype.bitwidth == 4 else zp
        values.append(new_initializer(graph, f"{site.name}_zero_point", _tensor(packed, weight.dtype, zp.shape, "")))
    if per_channel:
        return values, [ir.AttrInt64("axis", 1)]
    return values, [ir.AttrInt64("axis", 0), ir.AttrInt64("block_size", weight.fmt.block_size)]


def dequantize_for(graph: ir.Graph, site: Site, node: ir.Node, inputs: list[ir.Value], attrs: list[ir.Attr]) -> None:
    """Puts a DequantizeLinear with these inputs (codes, scale, zero point) in front of one of the site's nodes."""
    out = ir.Value(name=f"{node.name}_weight", type=ir.TensorType(site.weight.dtype or ir.DataType.FLOAT))
    out.shape = ir.Shape([site.c_in, site.c_out])
    dq = ir.Node("", "DequantizeLinear", inputs, attrs, outputs=[out], name=f"{node.name}_DequantizeLinear")
    graph.insert_before(node, dq)
    if site.transposed:
        _gemm_to_matmul(graph, node, out)
    else:
        node.replace_input_with(1, out)


def _gemm_to_matmul(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    """Gemm(transB=1) as MatMul and Add: onnxruntime never fuses a transposed weight."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    old = node.outputs[0]
    matmul = ir.Node("", "MatMul", [node.inputs[0], weight], name=f"{node.name}_MatMul")
    new = [matmul]
    if bias is not None:
        matmul.outputs[0].name = f"{old.name}_product"
        new.append(ir.Node("", "Add", [matmul.outputs[0], bias], name=f"{node.name}_Add"))
    graph.insert_before(node, new)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], [old], [new[-1].outputs[0]])


def _tensor(codes: np.ndarray, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> ir.TensorProtocol:
    if dtype.bitwidth == 4:
        return ir.PackedTensor(codes, dtype, shape=shape, name=name)
    return ir.Tensor(codes, dtype=dtype, name=name)


def _pack(codes: np.ndarray) -> np.ndarray:
    flat = np.append(codes.ravel(), np.zeros(codes.size % 2, codes.dtype)).astype(np.uint8) & 15
    return flat[0::2] | flat[1::2] << 4
