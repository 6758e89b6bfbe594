"""Models with bfloat16 as float32: onnxruntime has few kernels of bfloat16 on a CPU, so it runs float32 copies.

Every bfloat16 number is a float32 number; the sums and products between are more exact than in bfloat16.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from jaxq.graph.tensors import read_weight

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
# Attributes that hold an element type.
_TYPES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")


def has_bfloat16(model: ir.Model) -> bool:
    """True if anything in a model is bfloat16: a weight, an input, or the result of a Cast."""
    return any(v.dtype == _NARROW for v in _values(model)) or any(
        _is_narrow(attr) for node in _nodes(model) for attr in node.attributes.values()
    )


def widen_bfloat16(model: ir.Model) -> None:
    """Turns all bfloat16 in a model into float32, in place; weights are widened when they are read or saved."""
    for value in _values(model):
        if value.dtype != _NARROW:
            continue
        tensor = value.const_value
        value.type = ir.TensorType(_WIDE)
        if tensor is not None:
            value.const_value = _widened(tensor)
    for node in _nodes(model):
        for name, attr in tuple(node.attributes.items()):
            if not _is_narrow(attr):
                continue
            if attr.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, _widened(attr.as_tensor()))
            else:
                node.attributes[name] = ir.AttrInt64(name, int(_WIDE))


def _is_narrow(attr: ir.Attr) -> bool:
    if attr.type == ir.AttributeType.TENSOR:
        return attr.as_tensor().dtype == _NARROW
    return attr.type == ir.AttributeType.INT and attr.name in _TYPES and attr.value == int(_NARROW)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(partial(_float_tensor, ir.Value(const_value=tensor)), _WIDE, shape, name=tensor.name)


def _float_tensor(source: ir.Value) -> ir.Tensor:
    return ir.Tensor(read_weight(source).astype(np.float32))


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    for graph in (model.graph, *model.functions.values()):
        yield from ir.traversal.RecursiveGraphIterator(graph)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
    for function in model.functions.values():
        yield from function.inputs
    for node in _nodes(model):
        yield from node.outputs
