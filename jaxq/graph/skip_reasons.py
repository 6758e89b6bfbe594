"""Why a weight is left alone: what its nodes, its shape or its type do not allow."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from jaxq.graph.already_quantized import PART, is_part
from jaxq.graph.constants import constant_tensor, static_shape, weight_shape
from jaxq.graph.nodes import attribute, is_standard
from jaxq.graph.normalize.gemm import is_bias
from jaxq.graph.readers import Reader, is_table

VECTOR = "a vector (bias, norm or constant)"

_QUANTIZABLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_CAN = "the second input of MatMul, Gemm and Conv can be quantized"
_LEAST_COLUMN = 16  # the smallest block of any form
_VIEWS = ("Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split")


def why_not(weight: ir.Value, readers: Sequence[Reader], main: ir.Graph, gather_axis: int | None) -> str | None:
    """Why a weight cannot be quantized; None where it can.

    Args:
        weight: A float initializer.
        readers: Those that read it; see `jaxq.graph.readers.find_readers`.
        main: The model's graph, which the weight or a subgraph that holds it lies in.
        gather_axis: The axis, 0 or 1, along which tables of Gather are blocked; None leaves them alone.
    """
    shape = weight_shape(weight)
    rank = len(shape)
    if weight.is_graph_output():
        return f"it is {_output_of(weight, main)}"
    if not readers:
        return "no node reads it"
    if rank == 1:
        return VECTOR
    if np.prod(shape) < 2:
        return _why_not_size(shape)
    if is_part(weight):
        return PART
    if way := _way_out(weight, main):
        return f"it is {'also ' if len(weight.uses()) > 1 else ''}{way}"
    if rank > 2 and (tables := [reader.node for reader in readers if reader.table]):
        return _why_not_picked(weight, tables[0])
    for reader in readers:
        if reason := _why_not_gather(reader) if is_table(reader.node) else _why_not_product(reader):
            return reason
    if reason := _why_not_table(readers, gather_axis) or _why_not_shape(weight, readers):
        return reason
    if weight.dtype not in _QUANTIZABLE:
        return f"its type is {weight.dtype}: float32, float16 and bfloat16 can be quantized"
    return None


def why_not_lifted(constant: ir.Value, main: ir.Graph) -> str:
    """Why a tensor stayed in its Constant node; see `jaxq.graph.prepare.tidy`."""
    tensor = constant_tensor(constant)
    if constant.is_graph_output() or tensor is None:
        return f"it is {_output_of(constant, main)}"
    return _why_not_size(static_shape(tensor))


def _why_not_size(shape: tuple[int, ...]) -> str:
    return "a tensor of one number" if np.prod(shape) else "a tensor without numbers"


def _output_of(value: ir.Value, main: ir.Graph) -> str:
    mine = any(output is value for output in main.outputs)
    return "an output of the model" if mine else "an output of a branch or loop body"


def _way_out(value: ir.Value, main: ir.Graph) -> str | None:
    """Of which graph a view of the value is an output, and through which operators."""
    for node, index in value.uses():
        if index or not is_standard(node, *_VIEWS):
            continue
        for output in node.outputs:
            if output.is_graph_output():
                return f"{_output_of(output, main)}, through {node.op_type}"
            if way := _way_out(output, main):
                what, _, operators = way.rpartition(", through ")
                return f"{what}, through {node.op_type}, {operators}"
    return None


def _why_not_picked(weight: ir.Value, gather: ir.Node) -> str:
    index = gather.inputs[1]
    how = "a computed" if index is None or index.const_value is None else "a constant"
    what = f"a stack of shape {list(weight_shape(weight))} that Gather picks from by {how} index"
    return f"{what}: one that MatMul reads as a whole can be quantized"


def _why_not_gather(reader: Reader) -> str | None:
    if reader.index != 0:
        return f"read by Gather as input {reader.index}"
    if axis := attribute(reader.node, "axis", 0):
        return f"read by a Gather with axis={axis:g}: tables whose rows are gathered can be quantized"
    return None


def _why_not_product(reader: Reader) -> str | None:
    node, index = reader.node, reader.index
    if is_bias(node, index):
        return f"the bias of a {'Conv' if node.op_type == 'Conv' else 'Gemm'}"
    if node.domain == "com.microsoft" and node.op_type == "MoE":
        return f"read by {node.op_type} as input {index}: that operator's experts are left as they are"
    if index != 1 or not is_standard(node, "MatMul", "Gemm", "Conv"):
        return f"read by {node.op_type} as input {index}: {_CAN}"
    if node.op_type == "Gemm" and (reason := _why_not_gemm(node)):
        return reason
    if node.inputs[0] is None or node.inputs[0].const_value is not None:
        return "it multiplies a constant, not an activation"
    return None


def _why_not_gemm(node: ir.Node) -> str | None:
    for name, plain in (("transA", 0), ("alpha", 1.0), ("beta", 1.0)):
        if (value := attribute(node, name, plain)) != plain:
            return f"read by a Gemm with {name}={value:g}"
    return None


def _why_not_table(readers: Sequence[Reader], gather_axis: int | None) -> str | None:
    """Tables are blocked along one axis, and products along their input channels."""
    products = [reader for reader in readers if not reader.table]
    tables = len(products) < len(readers)
    axes = {int(reader.transposed) for reader in products}
    if len(axes) > 1:
        ways = "nodes that read it as it is and transposed" if tables else "Gemm nodes with and without transB"
        return f"shared by {ways}"
    if not tables or axes == {gather_axis}:
        return None
    if axes:
        others = " and ".join(dict.fromkeys(reader.node.op_type for reader in products))
        return f"a table that Gather and {others} read: gather.axis={min(axes)} quantizes it once for both"
    return "a table that Gather reads: quantized where gather.axis is given" if gather_axis is None else None


def _why_not_shape(weight: ir.Value, readers: Sequence[Reader]) -> str | None:
    shape = weight_shape(weight)
    if any(reader.node.op_type == "Conv" for reader in readers):
        return _why_not_kernel(shape, [reader.node for reader in readers])
    if any(d != 1 for d in shape[:-3]):
        return f"a stack of shape {list(shape)}: stacks [matrices, c_in, c_out] can be quantized"
    return None


def _why_not_kernel(shape: tuple[int, ...], nodes: Sequence[ir.Node]) -> str | None:
    if others := dict.fromkeys(node.op_type for node in nodes if node.op_type != "Conv"):
        return f"a kernel that Conv and {' and '.join(others)} read: one that Conv alone reads can be quantized"
    if len({attribute(node, "group", 1) for node in nodes}) > 1:
        return "shared by Conv nodes with different groups"
    if (size := int(np.prod(shape[1:]))) < _LEAST_COLUMN:
        return f"a kernel with {size} weights for each output: fewer than the least block, {_LEAST_COLUMN}"
    return None
