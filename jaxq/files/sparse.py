"""Sparse tensors of an ONNX file as dense ones: onnx_ir reads no others, and onnxruntime makes them dense too."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def densify(model: onnx.ModelProto, folder: Path) -> None:
    """Gives a model, in place, dense tensors for its sparse initializers and constants.

    Args:
        model: Any model; initializers of subgraphs and constants in functions are made dense too.
        folder: The folder of its external data.
    """
    _densify_graph(model.graph, folder)
    for function in model.functions:
        _densify_nodes(function.node, folder)


def _densify_graph(graph: onnx.GraphProto, folder: Path) -> None:
    graph.initializer.extend(_dense(tensor, folder) for tensor in graph.sparse_initializer)
    graph.ClearField("sparse_initializer")
    _densify_nodes(graph.node, folder)


def _densify_nodes(nodes: Iterable[onnx.NodeProto], folder: Path) -> None:
    for node in nodes:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _densify_graph(graph, folder)
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                dense = _dense(attribute.sparse_tensor, folder)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(sparse: onnx.SparseTensorProto, folder: Path) -> onnx.TensorProto:
    """Indices are positions in the flat tensor, or one row of coordinates each."""
    values, indices = (numpy_helper.to_array(tensor, str(folder)) for tensor in (sparse.values, sparse.indices))
    dims = tuple(sparse.dims)
    array = np.zeros(dims, values.dtype)
    array[np.unravel_index(indices, dims) if indices.ndim == 1 else tuple(indices.T)] = values
    return numpy_helper.from_array(array, sparse.values.name)
