"""What of a model is quantized already: tensors of codes, and what belongs to them. It is left as it is."""

from collections.abc import Iterable, Iterator

import onnx_ir as ir

ALREADY = "quantized already"
PART = "part of a weight that is quantized already"

_NO_CODES = (ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED)

# Inputs that hold codes, of operators that compute with them; the other small or float inputs belong to these.
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
    """Tensors of codes of 8 bits or fewer, and zero points beside them, each with what to say of it."""
    for graph in graphs:
        for value in graph.initializers.values():
            if _is_small(value) and (reason := _reason(value)):
                yield value, reason


def is_part(weight: ir.Value) -> bool:
    """Whether a float tensor is the scales of a weight that is quantized already."""
    return any(node.op_type in _CODES and node.op_type != "Cast" and index for node, index in weight.uses())


def _is_small(value: ir.Value) -> bool:
    dtype = value.dtype
    if value.const_value is None or dtype is None or dtype in _NO_CODES:
        return False
    return dtype.bitwidth <= 8 and value.const_value.size > 1


def _reason(value: ir.Value) -> str | None:
    uses = [(node.op_type, index) for node, index in value.uses()]
    if any(index in _CODES.get(op, ()) for op, index in uses):
        return ALREADY
    if any(op in _CODES for op, _ in uses):
        return PART
    return ALREADY if value.const_value is not None and len(value.const_value.shape) > 1 else None
