"""Read the numbers of initializers, from memory or from the model's files."""

import numpy as np
import onnx_ir as ir

from jaxq.graph.normalize.views import View, own_mapping


def read_weight(weight: ir.Value, shape: tuple[int, ...] | None = None, index: int = 0) -> np.ndarray:
    """A copy of an initializer, or of one entry of it in another shape; its file is mapped only while it is read."""
    tensor = weight.const_value
    assert tensor is not None
    if shape is not None and isinstance(tensor, View):
        return tensor.entry(shape, index)
    mapped = own_mapping(tensor) if isinstance(tensor, ir.ExternalTensor) else None  # others may be reading it too
    array = (mapped or tensor).numpy()
    array = np.array(array if shape is None else array.reshape(shape)[index])
    if mapped is not None:
        mapped.release()
    return array


def in_memory(weight: ir.Value) -> ir.TensorProtocol:
    """A tensor with the values of a memory-mapped initializer, to store in the model's file; read when it is saved."""
    tensor = weight.const_value
    assert tensor is not None
    source = ir.Value(name=weight.name, const_value=tensor)
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: ir.Tensor(read_weight(source)), tensor.dtype, shape, name=weight.name)
