"""How a file stores a quantized weight: form, dtype, blocks and tensors, from the nodes that dequantize it."""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from jaxq.graph.nodes import attribute
from jaxq.readback.constants import constant_input
from jaxq.readback.nodes import (
    DEQUANTIZERS,
    E2M1_PAIRS,
    QUANTIZERS,
    UnknownLayoutError,
    decodes,
    input_of,
    matmulnbits_sizes,
    operator_of,
    optional_input,
    producer_of,
    shape_of,
    size_of,
    tensor_of,
    type_of,
)
from jaxq.readback.operators import blocks_of


@dataclass(frozen=True, eq=False)
class Layout:
    """How a file stores one quantized weight.

    Attributes:
        form, dtype, block_size, axis, float_dtype: As in `jaxq.readback.found_weight.FoundWeight`.
        shape: The stored shape, or the one that a Reshape gives the weight before a Transpose.
        tensors: Codes or the float weight, scales, zero points, the weight's scale.
        code_bits: Bits of a code where the file stores the float weight; else None.
        transposed: Nodes swap the last two dimensions of ``shape``.
    """

    form: str
    dtype: str
    block_size: int
    axis: int
    shape: tuple[int, ...]
    float_dtype: ir.DataType
    tensors: tuple[ir.Value, ...]
    code_bits: int | None = None
    transposed: bool = False


def layout_of_constant(value: ir.Value) -> Layout:
    """The layout of a weight that nodes dequantize.

    Raises:
        UnknownLayoutError: its nodes are not those of a form that jaxq knows.
    """
    float_dtype, transposed, shape = type_of(value), False, None
    # From the reader back to the dequantizer: nodes on the way change shape and type, not the numbers.
    node = value.producer()
    while node is not None and (node.op_type in ("Transpose", "Cast", "Identity") or _restores_shape(node)):
        if node.op_type == "Transpose":
            _check_swap(node, shape)
            transposed = not transposed
        elif node.op_type == "Reshape":
            shape = shape or tuple(constant_input(node, 1).tolist())
        node = input_of(node, 0).producer()
    if node is None:
        raise UnknownLayoutError("a constant without scales")
    layout = _layout_of_dequantizer(node) if operator_of(node) in DEQUANTIZERS else _layout_of_casts(node)
    if shape is not None and (len(layout.shape) != 2 or np.prod(shape) != np.prod(layout.shape) or min(shape) < 1):
        raise UnknownLayoutError(f"a Reshape of {list(layout.shape)} to {list(shape)}")
    return replace(layout, shape=shape or layout.shape, float_dtype=float_dtype, transposed=transposed)


def _restores_shape(node: ir.Node) -> bool:
    """True if a node gives a weight, stored as a matrix, the shape of a stack or a kernel again."""
    if node.op_type != "Reshape":
        return False
    producer = input_of(node, 0).producer()
    return len(constant_input(node, 1)) > 2 or (producer is not None and operator_of(producer) in DEQUANTIZERS)


def _check_swap(node: ir.Node, shape: tuple[int, ...] | None) -> None:
    """Refuses a Transpose that does more than swap the last two dimensions, or that a Reshape follows."""
    perm = tuple(node.attributes.get_ints("perm", (1, 0)))
    rank = len(perm)
    if shape is not None or perm != (*range(rank - 2), rank - 1, rank - 2):
        raise UnknownLayoutError(f"a Transpose with perm={list(perm)}")


def _layout_of_dequantizer(node: ir.Node) -> Layout:
    """The layout behind a DequantizeLinear, standard or TensorRT's."""
    codes, scale = input_of(node, 0), input_of(node, 1)
    zero_points = [v for v in node.inputs[2:] if v is not None]
    quantizer, code_bits, dtype = codes.producer(), None, type_of(codes)
    if quantizer is not None and operator_of(quantizer) in QUANTIZERS:
        codes, code_bits = input_of(quantizer, 0), dtype.bitwidth
    shape = shape_of(codes)
    if any(tensor_of(v) is None for v in (codes, *zero_points)):
        raise UnknownLayoutError("codes or zero points that are computed")
    if dtype.bitwidth > 8 or not shape:
        raise UnknownLayoutError(f"codes of type {dtype}, shape {list(shape)}")
    form, name = "qdq" if code_bits else "dq", dtype.name.lower()
    mx, e4m3 = {"FLOAT4E2M1": "mxfp4", "FLOAT8E4M3FN": "mxfp8"}.get(dtype.name), ir.DataType.FLOAT8E4M3FN
    scales = _scales(scale)
    if operator_of(node)[0] == "trt":
        form = "trt_qdq" if code_bits else "trt"
        name = "mxfp8" if node.op_type == "TRT_MXFP8DequantizeLinear" else name
    elif mx and scales[0].dtype in (ir.DataType.FLOAT8E8M0, ir.DataType.UINT8):
        form, name = "mx_standard" if scale is scales[0] else "portable", mx
    elif mx == "mxfp4" and scales[0].dtype == e4m3 and len(scales) == 2:
        form, name = "nvfp4_standard", "nvfp4"
    axis, block = blocks_of(node, shape, shape_of(scales[0]))
    if len(shape) > 2 and block == shape[axis]:  # one scale a channel, written as one block
        axis, block = len(shape) - 1, -1
    tensors = (codes, scales[0], *zero_points, *scales[1:])
    return Layout(form, name, block, axis, shape, dtype, tensors, code_bits)


def _layout_of_casts(node: ir.Node) -> Layout:
    """The layout of codes that a Cast or a table of pairs turns into floats, times the scales of their blocks."""
    columns = None
    if node.op_type == "Slice":
        columns, node = int(constant_input(node, 2)[0]), producer_of(node, 0)
    padded = constant_input(node, 1).tolist() if node.op_type == "Reshape" else []
    product = producer_of(node, 0) if len(padded) == 2 else node
    blocks = producer_of(product, 0) if product.op_type == "Mul" else product
    values = blocks
    while values.op_type in ("Reshape", "Pad", "Slice"):
        values = producer_of(values, 0)
    if product.op_type != "Mul" or blocks.op_type != "Reshape" or not decodes(values):
        raise UnknownLayoutError(f"a constant that {node.op_type} computes")
    scales = _scales(input_of(product, 1))
    if values.op_type == "Gather":
        if not np.array_equal(constant_input(values, 0), E2M1_PAIRS):
            raise UnknownLayoutError("bytes that stand for other numbers than two E2M1 codes")
        codes, name = input_of(producer_of(values, 1), 0), "nvfp4" if len(scales) == 2 else "mxfp4"
    else:
        codes = input_of(values, 0)
        name = "mxfp8" if scales[0].dtype == ir.DataType.UINT8 else type_of(codes).name.lower()
    shape = (int(padded[0]), int(padded[1]) if columns is None else columns)
    return Layout("portable", name, int(constant_input(blocks, 1)[-1]), 1, shape, ir.DataType.FLOAT, (codes, *scales))


def _scales(value: ir.Value) -> tuple[ir.Value, ...]:
    """Tensors that scales are computed from: one, or the blocks' scales and the weight's scale."""
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Reshape", "Identity"):
        value = input_of(node, 0)
        node = value.producer()
    if tensor_of(value) is not None:
        return (value,)
    if node is not None and node.op_type == "Pow":  # 2^(exponent - 127)
        return _scales(input_of(producer_of(node, 1), 0))
    if node is not None and (node.op_type == "Mul" or operator_of(node) in DEQUANTIZERS) and len(node.inputs) == 2:
        return _scales(input_of(node, 0)) + _scales(input_of(node, 1))
    raise UnknownLayoutError("scales that are computed in a way that is not known")


def layout_of_matmulnbits(node: ir.Node) -> Layout:
    """The layout inside a MatMulNBits node."""
    codes, scales = input_of(node, 1), _scales(input_of(node, 2))
    zero_points, order = optional_input(node, 3), optional_input(node, 4)
    k, n, bits, block = matmulnbits_sizes(node)
    if order is not None or attribute(node, "weight_prepacked", 0) or bits not in (2, 4, 8):
        raise UnknownLayoutError("a MatMulNBits node with g_idx, prepacked bytes or bits other than 2, 4 and 8")
    tensors = tuple(v for v in (codes, scales[0], zero_points, *scales[1:]) if v is not None)
    if any(tensor_of(v) is None for v in tensors):
        raise UnknownLayoutError("a MatMulNBits node with codes or scales that are computed")
    if size_of(codes) * 8 != n * -(-k // block) * block * bits:
        raise UnknownLayoutError(f"a MatMulNBits node with K={k}, N={n} and codes of shape {list(shape_of(codes))}")
    name = f"int{bits}" if zero_points is None else f"uint{bits}"
    return Layout("matmulnbits", name, block, 1, (n, k), type_of(input_of(node, 2)), tensors, transposed=True)


def layout_of_gather(node: ir.Node) -> Layout:
    """The layout inside a GatherBlockQuantized node, which may read the bytes of a MatMulNBits through a Reshape."""
    codes, shape = input_of(node, 0), shape_of(input_of(node, 0))
    reshape = codes.producer()
    if reshape is not None and operator_of(reshape) == ("", "Reshape"):
        codes, shape = input_of(reshape, 0), tuple(int(d) for d in constant_input(reshape, 1))
    scales, zero_points = _scales(input_of(node, 2)), [v for v in node.inputs[3:] if v is not None]
    tensors = (codes, scales[0], *zero_points, *scales[1:])
    if any(tensor_of(v) is None for v in tensors) or not all(d > 0 for d in shape):
        raise UnknownLayoutError("a GatherBlockQuantized node with codes or scales that are computed")
    dtype = type_of(tensors[0])
    name = dtype.name.lower()
    if dtype == ir.DataType.UINT8:
        bits = int(attribute(node, "bits", 4))
        if bits not in (2, 4, 8):
            raise UnknownLayoutError(f"a GatherBlockQuantized node with bits={bits}")
        name = f"int{bits}" if not zero_points else f"uint{bits}"
        shape = (*shape[:-1], shape[-1] * 8 // bits)
    block, axis = int(attribute(node, "block_size", 128)), int(attribute(node, "quantize_axis", 1))
    if block < 0 or not -len(shape) <= axis < len(shape):
        raise UnknownLayoutError(f"a GatherBlockQuantized node with block_size={block} and quantize_axis={axis}")
    return Layout("matmulnbits", name, block or -1, axis % len(shape), shape, type_of(input_of(node, 2)), tensors)
