"""What the bytes of a quantized file stand for, worked out without jaxq."""

import re
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from tests.support.running import graphs, initializers

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
_DEQUANTIZERS = ("DequantizeLinear", "TRT_INT4DequantizeLinear", "TRT_MXFP8DequantizeLinear")
_CHAIN = ("Cast", "Gather", "Reshape", "Slice", "Pad", "Mul")  # from the bytes of a portable weight to the weight


def dequantized(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights [c_in, c_out], stacks, kernels and tables as they were, by the names they had, in float64.

    The copies of a shared weight, one for each node that reads it, have to be the same; a table that products read too
    is given as the table.
    """
    file, products, tables = _File(model), {}, {}
    for node in file.nodes:
        if node.op_type in _DEQUANTIZERS and not file.is_scale(node.output[0]):
            name, w = file.name_of(node), file.turn(node.output[0], _dequantize_linear(node, file))
        elif node.op_type == "MatMulNBits":
            name, w = file.name_of(node), _mat_mul_n_bits(node, file)
        elif node.op_type == "GatherBlockQuantized":
            name, w = file.name_of(node), _gather_block_quantized(node, file)
        elif node.op_type == "Cast" and re.search(r"_quantized(_\d+)?$", node.input[0]):
            name, w = file.name_of(node), file.turn(node.output[0], _portable(node, file))
        else:
            continue
        table = node.op_type == "GatherBlockQuantized" or file.is_table(node)
        found = tables if table else products
        np.testing.assert_array_equal(w, found.setdefault(name, w))
    for name in products.keys() & tables.keys():
        turned = products[name].T
        assert np.array_equal(tables[name], turned) or np.array_equal(tables[name], products[name])
    return products | tables


class _File:
    """A model's tensors, and who makes and who reads a value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = [node for graph in graphs(model.graph) for node in graph.node]
        self.tensors = initializers(model)
        self.protos = {tensor.name: tensor for graph in graphs(model.graph) for tensor in graph.initializer}

    def reader(self, value: str) -> tuple[NodeProto, int]:
        (found,) = [(n, i) for n in self.nodes for i, name in enumerate(n.input) if name == value]
        return found

    def maker(self, value: str) -> NodeProto:
        (found,) = [n for n in self.nodes if value in n.output]
        return found

    def is_scale(self, value: str) -> bool:
        """NVFP4's block scales are dequantized themselves."""
        node, index = self.reader(value)
        return node.op_type in _DEQUANTIZERS and index == 1

    def is_table(self, node: NodeProto) -> bool:
        """Gather looks up what a dequantizer gives."""
        return node.op_type in _DEQUANTIZERS and self.reader(node.output[0])[0].op_type == "Gather"

    def name_of(self, node: NodeProto) -> str:
        """The weight's name in the float model."""
        name = node.input[1] if node.op_type == "MatMulNBits" or node.input[0] not in self.tensors else node.input[0]
        if node.op_type == "GatherBlockQuantized":
            name = self.codes_of_table(node)[0]
        while name not in self.tensors:
            name = self.maker(name).input[0]
        return re.sub(r"_(quantized|scale)(_\d+)?$", "", name)

    def codes_of_table(self, node: NodeProto) -> tuple[str, np.ndarray]:
        """Name and bytes of a table's codes, which it may read from those of a product through a Reshape."""
        if node.input[0] in self.tensors:
            return node.input[0], self.tensors[node.input[0]]
        reshape = self.maker(node.input[0])
        return reshape.input[0], self.tensors[reshape.input[0]].reshape(self.tensors[reshape.input[1]])

    def turn(self, value: str, w: np.ndarray) -> np.ndarray:
        """``w`` as [c_in, c_out], which the products that read ``value`` may hold turned."""
        node, index = self.reader(value)
        if node.op_type == "Reshape" and self.reader(node.output[0])[0].op_type in ("Conv", "MatMul", "Transpose"):
            w = w.reshape(self.tensors[node.input[1]])
        if node.op_type in _CHAIN and not (node.op_type == "Gather" and index == 0):
            return self.turn(node.output[0], w)
        if node.op_type == "Transpose":
            (perm,) = [a.ints for a in node.attribute]
            return self.turn(node.output[0], w.transpose(perm))
        return w.T if attributes_of(node).get("transB") else w

    def codes(self, name: str) -> np.ndarray:
        """Numbers that the codes of a tensor stand for: of E2M1 from the bytes."""
        if self.protos[name].data_type != TensorProto.FLOAT4E2M1:
            return self.tensors[name].astype(np.float64)
        shape = tuple(self.protos[name].dims)
        return E2M1[unpack(np.frombuffer(self.protos[name].raw_data, np.uint8), 4)[: np.prod(shape)]].reshape(shape)

    def scale(self, name: str) -> np.ndarray:
        """Scales: floats, narrow ones that are cast, two in one, or powers of two by their biased exponents."""
        if name not in self.tensors and self.maker(name).op_type == "Cast":
            name = self.maker(name).input[0]
        if name not in self.tensors:
            s, s2 = self.maker(name).input
            if self.maker(name).op_type == "Mul":
                return self.scale(s) * self.tensors[s2].astype(np.float64)
            return self.tensors[s].astype(np.float64) * self.tensors[s2].astype(np.float64)
        s = self.tensors[name]
        if self.protos[name].data_type in (TensorProto.UINT8, TensorProto.FLOAT8E8M0):
            return 2.0 ** (s.view(np.uint8).astype(np.float64) - 127)
        return s.astype(np.float64)


def attributes_of(node: NodeProto) -> dict[str, int]:
    return {a.name: a.i for a in node.attribute}


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of ``bits`` along the last axis, the lowest bits of a byte first."""
    each = np.unpackbits(packed, axis=-1, bitorder="little")
    return (each.reshape(*packed.shape[:-1], -1, bits) << np.arange(bits)).sum(axis=-1)


def _dequantize_linear(node: NodeProto, file: _File) -> np.ndarray:
    if node.input[0] in file.tensors:
        codes = file.codes(node.input[0])
    else:
        codes = _quantize_linear(file.maker(node.input[0]), file)
    s, zp = _for_each(node, file, codes.shape)
    return (codes - zp) * s


def _quantize_linear(node: NodeProto, file: _File) -> np.ndarray:
    w = file.tensors[node.input[0]].astype(np.float32)
    s, zp = _for_each(node, file, w.shape)
    kinds = [file.protos[name].data_type for name in node.input[2:]]
    kinds += [a.i for a in node.attribute if a.name == "output_dtype"]
    kinds += [TensorProto.INT4] * (node.op_type == "TRT_INT4QuantizeLinear")
    return np.clip(np.rint(w / s.astype(np.float32)) + zp, *_RANGES[kinds[0]])


def _for_each(node: NodeProto, file: _File, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of every element that a (De)QuantizeLinear node reads."""
    how = attributes_of(node)
    s, *zp = (file.scale(node.input[1]), *(file.tensors[name].astype(np.float64) for name in node.input[2:]))
    return _spread(s, how, shape), _spread(zp[0], how, shape) if zp else np.zeros(shape)


def _spread(parameters: np.ndarray, how: Mapping[str, int], shape: tuple[int, ...]) -> np.ndarray:
    axis = how["axis"] % len(shape)
    if "block_size" in how:
        expected = list(shape)
        expected[axis] = -(-shape[axis] // how["block_size"])
        assert parameters.shape == tuple(expected)
        return np.repeat(parameters, how["block_size"], axis).take(range(shape[axis]), axis)
    assert parameters.shape == (shape[axis],)
    return np.broadcast_to(parameters.reshape(-1, *(1,) * (len(shape) - 1 - axis)), shape)


def _mat_mul_n_bits(node: NodeProto, file: _File) -> np.ndarray:
    how = attributes_of(node)
    rows, columns, bits, block = how["N"], how["K"], how["bits"], how["block_size"]
    n_blocks = -(-columns // block)
    packed, s = file.tensors[node.input[1]], file.scale(node.input[2])
    assert (packed.dtype, packed.shape) == (np.uint8, (rows, n_blocks, block * bits // 8))
    assert s.shape == (rows, n_blocks)
    zp = np.full(s.shape, 2 ** (bits - 1))
    if len(node.input) > 3 and node.input[3]:
        zp = unpack(file.tensors[node.input[3]], bits)[:, :n_blocks]
        assert file.tensors[node.input[3]].shape == (rows, -(-n_blocks * bits // 8))
    w = (unpack(packed, bits) - zp[..., None]) * s[..., None]
    return w.reshape(rows, -1)[:, :columns].T


def _gather_block_quantized(node: NodeProto, file: _File) -> np.ndarray:
    how, (name, codes) = attributes_of(node), file.codes_of_table(node)
    assert (how["gather_axis"], how["quantize_axis"]) == (0, 1)
    spread = {"axis": 1, "block_size": how["block_size"]}
    small = file.protos[name].data_type == TensorProto.UINT8
    bits = how.get("bits", 4)
    assert small or bits == 4
    zp: np.ndarray | int = 2 ** (bits - 1) if small else 0
    if small:
        codes = unpack(codes, bits)
    if len(node.input) > 3:
        zp = file.tensors[node.input[3]]
        zp = _spread((unpack(zp, bits) if small else zp).astype(np.float64), spread, codes.shape)
    return (codes.astype(np.float64) - zp) * _spread(file.scale(node.input[2]), spread, codes.shape)


def _portable(node: NodeProto, file: _File) -> np.ndarray:
    """E4M3 codes, or packed E2M1 codes in a row of bytes; they are [c_out, c_in] after the first Reshape into rows."""
    values = file.codes(node.input[0]).ravel()
    if file.protos[node.input[0]].data_type == TensorProto.UINT8:
        values = E2M1[unpack(file.tensors[node.input[0]], 4)]
    s = file.scale(re.sub(r"_quantized(_\d+)?$", r"_scale\1", node.input[0]))
    second = re.sub(r"_quantized(_\d+)?$", r"_scale_2\1", node.input[0])
    rows, n_blocks = s.shape[:2]
    shape, value = (0,), node.output[0]
    while len(shape) == 1:
        reader, _ = file.reader(value)
        value = reader.output[0]
        if reader.op_type == "Reshape":
            shape = tuple(file.tensors[reader.input[1]])
    w = values[: np.prod(shape)].reshape(rows, -1)
    s = s.reshape(rows, n_blocks) * (file.tensors[second].astype(np.float64) if second in file.tensors else 1)
    return w * _spread(s, {"axis": 1, "block_size": 16 if second in file.tensors else 32}, w.shape)
