"""Constants of an ONNX graph: initializers and Constant nodes, their tensors, shapes and float types."""

from collections.abc import Iterator

import onnx_ir as ir

from jaxq.graph.nodes import is_standard

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
"""Element types of weights that are not quantized."""


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer, or of a Constant node's output; None for any other value."""
    node = value.producer()
    if node is None:
        return value.const_value if value.is_initializer() else None
    if not is_standard(node, "Constant") or len(node.attributes) != 1:
        return None
    return None if any(a.is_ref() for a in node.attributes.values()) else ir.convenience.get_const_tensor(value)


def is_listed(value: ir.Value) -> bool:
    """True if a report names a constant of floats: all but scalars and vectors of at most one number."""
    tensor = constant_tensor(value)
    return tensor is not None and tensor.dtype in FLOATS and (tensor.size > 1 or len(tensor.shape) > 1)


def static_shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor as plain integers."""
    return tuple(int(d) for d in tensor.shape.numpy())


def weight_shape(weight: ir.Value) -> tuple[int, ...]:
    """The shape of an initializer."""
    assert weight.const_value is not None
    return static_shape(weight.const_value)


def all_initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Initializers of a model's graph and of its subgraphs."""
    for graph in model.graphs():
        yield from graph.initializers.values()
