"""Reasons why a weight is skipped: its nodes, its shape or its type cannot be quantized.

Other modules skip weights too:

- `jaxq.graph.sites` (``_excluded``): a pattern of ``method.exclude`` matches.
- `jaxq.graph.already_quantized`: the weight is quantized already.
- `jaxq.graph.normalize.functions`: the weight is in a function that cannot be inlined.
- `jaxq.graph.unused`: no node reads the weight.
- `jaxq.pipeline.job` (``_unsupported_reason``), which asks `jaxq.forms.form.Form.why_unsupported`: the form does not
  support the weight's format or shape.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from jaxq.graph.already_quantized import PART, is_parameter
from jaxq.graph.constants import constant_tensor, static_shape, weight_shape
from jaxq.graph.nodes import attribute, is_standard
from jaxq.graph.normalize.gemm import is_bias
from jaxq.graph.readers import Reader, is_table

VECTOR = "a vector (bias, norm or constant)"

_QUANTIZABLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_CAN = "the second input of MatMul, Gemm and Conv can be quantized"
_SMALLEST_KERNEL = 16  # weights for each output: of fewer, scales take a large part of what codes save
_VIEWS = ("Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split")


def skip_reason(weight: ir.Value, readers: Sequence[Reader], main: ir.Graph, gather_axis: int | None) -> str | None:
    """Why a weight cannot be quantized; None for a weight that can.

    Args:
        weight: A float initializer.
        readers: Its readers, from `jaxq.graph.readers.find_readers`.
        main: The model's graph; the weight is in it or in one of its subgraphs.
        gather_axis: The axis, 0 or 1, along which tables of Gather are blocked; None skips them.
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
        return _size_reason(shape)
    if is_parameter(weight):
        return PART
    if output_reason := _output_through_views(weight, main):
        return f"it is {'also ' if len(weight.uses()) > 1 else ''}{output_reason}"
    if rank > 2 and (tables := [reader.node for reader in readers if reader.table]):
        return _expert_reason(weight, tables[0])
    for reader in readers:
        if reason := _gather_reason(reader) if is_table(reader.node) else _product_reason(reader):
            return reason
    if reason := _table_reason(readers, gather_axis) or _shape_reason(weight, readers):
        return reason
    if weight.dtype not in _QUANTIZABLE:
        return f"its type is {weight.dtype}: float32, float16 and bfloat16 can be quantized"
    return None


def constant_skip_reason(constant: ir.Value, main: ir.Graph) -> str:
    """Why `jaxq.graph.prepare.tidy` left a tensor in its Constant node."""
    tensor = constant_tensor(constant)
    if constant.is_graph_output() or tensor is None:
        return f"it is {_output_of(constant, main)}"
    return _size_reason(static_shape(tensor))


def _size_reason(shape: tuple[int, ...]) -> str:
    return "a tensor of one number" if np.prod(shape) else "a tensor without numbers"


def _output_of(value: ir.Value, main: ir.Graph) -> str:
    in_main = any(output is value for output in main.outputs)
    return "an output of the model" if in_main else "an output of a branch or loop body"


def _output_through_views(value: ir.Value, main: ir.Graph) -> str | None:
    """The graph that outputs a view of the value, and the operators between; None where no graph does."""
    for node, index in value.uses():
        if index or not is_standard(node, *_VIEWS):
            continue
        for output in node.outputs:
            if output.is_graph_output():
                return f"{_output_of(output, main)}, through {node.op_type}"
            if output_reason := _output_through_views(output, main):
                graph_output, _, operators = output_reason.rpartition(", through ")
                return f"{graph_output}, through {node.op_type}, {operators}"
    return None


def _expert_reason(weight: ir.Value, gather: ir.Node) -> str:
    index = gather.inputs[1]
    kind = "a computed" if index is None or index.const_value is None else "a constant"
    stack = f"a stack of shape {list(weight_shape(weight))} that Gather picks from by {kind} index"
    return f"{stack}: one that MatMul reads as a whole can be quantized"


def _gather_reason(reader: Reader) -> str | None:
    if reader.index != 0:
        return f"read by Gather as input {reader.index}"
    if axis := attribute(reader.node, "axis", 0):
        return f"read by a Gather with axis={axis:g}: tables whose rows are gathered can be quantized"
    return None


def _product_reason(reader: Reader) -> str | None:
    node, index = reader.node, reader.index
    if is_bias(node, index):
        return f"the bias of a {'Conv' if node.op_type == 'Conv' else 'Gemm'}"
    if node.domain == "com.microsoft" and node.op_type == "MoE":
        return f"read by {node.op_type} as input {index}: jaxq does not quantize that operator's experts"
    if index != 1 or not is_standard(node, "MatMul", "Gemm", "Conv"):
        return f"read by {node.op_type} as input {index}: {_CAN}"
    if node.op_type == "Gemm" and (reason := _gemm_reason(node)):
        return reason
    if node.inputs[0] is None or node.inputs[0].const_value is not None:
        return "it multiplies a constant, not an activation"
    return None


def _gemm_reason(node: ir.Node) -> str | None:
    for name, default in (("transA", 0), ("alpha", 1.0), ("beta", 1.0)):
        if (value := attribute(node, name, default)) != default:
            return f"read by a Gemm with {name}={value:g}"
    return None


def _table_reason(readers: Sequence[Reader], gather_axis: int | None) -> str | None:
    """Tables are blocked along ``gather_axis``, products along their input channels: a tied weight needs both equal."""
    products = [reader for reader in readers if not reader.table]
    tables = len(products) < len(readers)
    axes = {int(reader.transposed) for reader in products}
    if len(axes) > 1:
        readings = "nodes that read it as it is and transposed" if tables else "Gemm nodes with and without transB"
        return f"shared by {readings}"
    if not tables or axes == {gather_axis}:
        return None
    if axes:
        others = " and ".join(dict.fromkeys(reader.node.op_type for reader in products))
        return f"a table that Gather and {others} read: gather.axis={min(axes)} quantizes it once for both"
    return "a table that Gather reads: quantized where gather.axis is given" if gather_axis is None else None


def _shape_reason(weight: ir.Value, readers: Sequence[Reader]) -> str | None:
    shape = weight_shape(weight)
    if any(reader.node.op_type == "Conv" for reader in readers):
        return _kernel_reason(shape, [reader.node for reader in readers])
    if any(d != 1 for d in shape[:-3]):
        return f"a stack of shape {list(shape)}: stacks [matrices, c_in, c_out] can be quantized"
    return None


def _kernel_reason(shape: tuple[int, ...], nodes: Sequence[ir.Node]) -> str | None:
    if others := dict.fromkeys(node.op_type for node in nodes if node.op_type != "Conv"):
        return f"a kernel that Conv and {' and '.join(others)} read: one that Conv alone reads can be quantized"
    if len({attribute(node, "group", 1) for node in nodes}) > 1:
        return "shared by Conv nodes with different groups"
    if (size := int(np.prod(shape[1:]))) < _SMALLEST_KERNEL:
        return f"a kernel with {size} weights for each output: those with {_SMALLEST_KERNEL} or more can be quantized"
    return None
