"""Tensors that a model quantizes already: codes with their scales and zero points. jaxq skips them."""

from collections.abc import Iterable, Iterator

import onnx_ir as ir

ALREADY = "quantized already"
PART = "part of a weight that is quantized already"

_NO_CODES = (ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED)

# Which inputs of an operator are codes; its other inputs of few bits or floats are their scales and zero points.
_CODES = {
    "DequantizeLinear": (0,),
    "TRT_INT4DequantizeLinear": (0,),
    "TRT_MXFP8DequantizeLinear": (0,),
    "Cast": (0,),
    "MatMulNBits": (1,),
    "MatMulBnb4": (1,),
    "MatMulFpQ4": (1,),
    "GatherBlockQuantized": (0,),
    "MatMulInteger": (0, 1),
    "ConvInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (1,),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3),
    "QGemm": (0, 3),
    "QAttention": (1,),
    "QMoE": (2, 5, 8),
}


def find_already_quantized(graphs: Iterable[ir.Graph]) -> Iterator[tuple[ir.Value, str]]:
    """Codes of at most 8 bits and their zero points, each with its skip reason."""
    for graph in graphs:
        for value in graph.initializers.values():
            if _is_small(value) and (reason := _skip_reason(value)):
                yield value, reason


def is_parameter(weight: ir.Value) -> bool:
    """True if a float tensor is the scales of a weight that is quantized already."""
    return any(node.op_type in _CODES and node.op_type != "Cast" and index for node, index in weight.uses())


def _is_small(value: ir.Value) -> bool:
    dtype = value.dtype
    if value.const_value is None or dtype is None or dtype in _NO_CODES:
        return False
    return dtype.bitwidth <= 8 and value.const_value.size > 1


def _skip_reason(value: ir.Value) -> str | None:
    uses = [(node.op_type, index) for node, index in value.uses()]
    if any(index in _CODES.get(op, ()) for op, index in uses):
        return ALREADY
    if any(op in _CODES for op, _ in uses):
        return PART
    return ALREADY if value.const_value is not None and len(value.const_value.shape) > 1 else None
