"""Load an ONNX file without its weights: they stay in the file, memory-mapped, inside it or as external data.

`onnx.load` reads a file into memory and parses that into a second copy. Here only the small rest
is parsed; for large initializers the loader notes where their bytes are in the file.
"""

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from jaxq.errors import JaxqError
from jaxq.files.sparse import densify

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9  # field numbers in onnx.proto
_SMALL = 1024


def load_lazily(path: Path) -> ir.Model:
    """The model, each large initializer an `onnx_ir.ExternalTensor` into the file itself or its external data.

    The tensors' ``location`` is the full path, and their ``base_dir`` is empty. Files may be links to anywhere, as in
    the cache of the Hugging Face hub; the names in the model may not leave its folder.

    Raises:
        DecodeError: the file is not an ONNX protobuf.
        JaxqError: it names external data outside its folder.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise DecodeError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            proto = _strip_model(data, path.name)
    densify(proto, path.parent)
    for tensor in _all_tensors(proto):
        _locate(tensor, path)
    return ir.from_proto(proto)


def _locate(tensor: onnx.TensorProto, path: Path) -> None:
    """Makes the location of external data a full path: onnx_ir refuses links where a tensor has a base_dir."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    for entry in tensor.external_data:
        if entry.key != "location":
            continue
        if os.path.isabs(entry.value) or os.path.normpath(entry.value).split(os.sep)[0] == os.pardir:
            raise JaxqError(
                f"model file {str(path)!r} stores weights in {entry.value!r}, outside its folder: "
                "move that file beside the model, and correct the location that the model names"
            )
        entry.value = str(path.parent / entry.value)


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _strip_model(data: mmap.mmap, location: str) -> onnx.ModelProto:
    rest, graph = bytearray(), onnx.GraphProto()
    for field, start, body, stop in _fields(data, 0, len(data)):
        if field == _MODEL_GRAPH:
            graph = _strip_graph(data, body, stop, location)
        else:
            rest += data[start:stop]
    model = onnx.ModelProto.FromString(bytes(rest))
    model.graph.CopyFrom(graph)
    return model


def _strip_graph(data: mmap.mmap, start: int, stop: int, location: str) -> onnx.GraphProto:
    rest, tensors = bytearray(), []
    for field, begin, body, end in _fields(data, start, stop):
        if field == _GRAPH_INITIALIZER:
            tensors.append(_strip_tensor(data, body, end, location))
        else:
            rest += data[begin:end]
    graph = onnx.GraphProto.FromString(bytes(rest))
    graph.initializer.extend(tensors)
    return graph


def _strip_tensor(data: mmap.mmap, start: int, stop: int, location: str) -> onnx.TensorProto:
    rest, raw = bytearray(), None
    for field, begin, body, end in _fields(data, start, stop):
        if field == _TENSOR_RAW_DATA and end - body > _SMALL:
            raw = (body, end - body)
        else:
            rest += data[begin:end]
    tensor = onnx.TensorProto.FromString(bytes(rest))
    if raw:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(raw[0])), ("length", str(raw[1]))):
            tensor.external_data.add(key=key, value=value)
    return tensor


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a protobuf message: number, where the field starts, where its content starts, where it ends."""
    at = start
    while at < stop:
        key, body = _varint(data, at, stop)
        kind = key & 7
        if kind == 0:
            _, end = _varint(data, body, stop)
        elif kind == 2:
            size, body = _varint(data, body, stop)
            end = body + size
        elif kind in (1, 5):
            end = body + (8 if kind == 1 else 4)
        else:
            raise DecodeError(f"wire type {kind} at byte {at}")
        if end > stop or not key >> 3:
            raise DecodeError(f"a field at byte {at} is cut off")
        yield key >> 3, at, body, end
        at = end


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while at < stop and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise DecodeError(f"a number at byte {at} is cut off")
