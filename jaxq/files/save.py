"""Write a model as one ONNX file, one weight in memory at a time: each is computed or read when it is written.

A protobuf library builds the whole message, and then its bytes: memory for the weights twice or three times. Here the
message's fields are written one after the other; the file is a plain ONNX file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9  # field numbers in onnx.proto
_LENGTH_DELIMITED = 2
_SMALL = 1024


def save_lazily(model: ir.Model, path: Path) -> None:
    """Writes a model; large initializers of its main graph are read one at a time.

    Args:
        model: Not changed. Of its tensors only the main graph's initializers may lie in other files.
        path: The file; at most 2 GiB, the limit of protobuf.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    tensors = {value: value.const_value for value in model.graph.initializers.values()}
    large = {value: tensor for value, tensor in tensors.items() if tensor is not None and _is_large(tensor)}
    proto = _with_placeholders(model, large)
    fields = list(_initializer_fields(proto.graph, {str(value.name): tensor for value, tensor in large.items()}))
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    length = len(graph) + sum(len(head) + (0 if tensor is None else tensor.nbytes) for head, tensor in fields)
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + _key(_MODEL_GRAPH, length) + graph)
        for head, tensor in fields:
            file.write(head)
            if tensor is not None:
                stop = file.tell() + tensor.nbytes
                _write_data(tensor, file)
                assert file.tell() == stop, f"tensor {tensor.name!r} is not as long as it says"


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """True if a tensor is written by itself: large ones, and all that are in another file."""
    return tensor.dtype != ir.DataType.STRING and (tensor.nbytes > _SMALL or isinstance(tensor, ir.ExternalTensor))


def _with_placeholders(model: ir.Model, large: Mapping[ir.Value, ir.TensorProtocol]) -> onnx.ModelProto:
    """The model as a protobuf message, in which large tensors have names and shapes but no data."""
    try:
        for value, tensor in large.items():
            value.const_value = ir.ExternalTensor(
                "elsewhere",
                None,
                None,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
        return ir.to_proto(model)
    finally:
        for value, tensor in large.items():
            value.const_value = tensor


def _initializer_fields(
    graph: onnx.GraphProto, large: Mapping[str, ir.TensorProtocol]
) -> Iterator[tuple[bytes, ir.TensorProtocol | None]]:
    """The bytes of each initializer; for a large one the bytes before its data, and the tensor with the data."""
    for proto in graph.initializer:
        tensor = large.get(proto.name)
        if tensor is None:
            text = proto.SerializeToString()
            yield _key(_GRAPH_INITIALIZER, len(text)) + text, None
            continue
        proto.ClearField("data_location")
        proto.ClearField("external_data")
        head = proto.SerializeToString() + _key(_TENSOR_RAW_DATA, tensor.nbytes)
        yield _key(_GRAPH_INITIALIZER, len(head) + tensor.nbytes) + head, tensor


def _write_data(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    copy = getattr(tensor, "tofile", None)  # not all have it; it can copy from file to file
    if copy is None:
        file.write(tensor.tobytes())
    else:
        copy(file)


def _key(number: int, length: int) -> bytes:
    """The bytes before the content of a length-delimited field: its key and its length."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
