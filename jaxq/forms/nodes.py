"""Build the nodes that dequantize a weight, and connect them in place of the float weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from jaxq.forms.stored_weight import StoredWeight, code_tensor, scale_tensor, second_scale_tensor, zero_point_tensor
from jaxq.graph.edit import drop_unused, graph_of, new_initializer
from jaxq.graph.nodes import attribute
from jaxq.graph.readers import float_type as type_read
from jaxq.graph.readers import is_table, views_of
from jaxq.graph.sites import Site

_SHARED = "jaxq/"


@dataclass(frozen=True)
class Output:
    """The output of a new node."""

    name: str
    dtype: ir.DataType
    shape: Sequence[int]


def add_node(
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Sequence[ir.Attr] = (),
    *,
    output: Output,
    domain: str = "",
) -> ir.Value:
    """Inserts a node in front of another; returns its output. The node's name is the output's and the operator."""
    value = ir.Value(name=output.name, type=ir.TensorType(output.dtype), shape=ir.Shape(list(output.shape)))
    node = ir.Node(domain, op, inputs, attributes, outputs=[value], name=f"{output.name}_{op}")
    graph_of(before).insert_before(before, node)
    return value


def int_attributes(values: Mapping[str, int]) -> list[ir.Attr]:
    """Attributes of a node that are integers."""
    return [ir.AttrInt64(name, value) for name, value in values.items()]


def constant(graph: ir.Graph, name: str, values: Sequence[int]) -> ir.Value:
    """A vector of int64, such as a shape; nodes with the same name share it."""
    return shared(graph, name, np.array(values, np.int64))


def shared(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer that all weights share; its prefix is that of no other name."""
    name = f"{_SHARED}{name}"
    return graph.initializers[name] if name in graph.initializers else new_initializer(graph, name, array)


def is_shared(name: str) -> bool:
    """True if an initializer of that name comes from `shared`."""
    return name.startswith(_SHARED)


def float_type(site: Site, node: ir.Node) -> ir.DataType:
    """The type in which a node of the site reads the weight: that of the activations."""
    return type_read(site.weight, node)


def is_transposed(site: Site, node: ir.Node) -> bool:
    """True if a node reads the weight as [c_out, c_in]: a table that is blocked along its rows, or a kernel."""
    return site.transposed and (site.kernel or is_table(node))


def drop_weight(site: Site) -> None:
    """Removes the site's float weight once nothing reads it."""
    drop_unused([*views_of(site.weight), site.weight])


def blocked_attributes(site: Site, weight: StoredWeight, transposed: bool) -> list[ir.Attr]:
    """Axis and block size of a (De)QuantizeLinear node for codes in the layout of `shape_of`.

    In a stack, one block per column is written as a block of c_in rows: a vector of scales has no axis for matrices.
    """
    block, lead = weight.fmt.block_size, lead_of(site, transposed)
    if block == -1 and not lead:
        return [ir.AttrInt64("axis", 0 if transposed else 1)]
    axis = 1 if transposed else len(lead)
    return [ir.AttrInt64("axis", axis), ir.AttrInt64("block_size", site.c_in if block == -1 else block)]


def shape_of(site: Site, transposed: bool) -> tuple[int, ...]:
    """The weight's shape: [*lead, c_in, c_out], or transposed [columns of all matrices, c_in]."""
    return (site.columns, site.c_in) if transposed else (*site.lead, site.c_in, site.c_out)


def layout_of(site: Site, weight: StoredWeight, transposed: bool) -> tuple[int, ...]:
    """As `shape_of`, but a kernel with one scale per output keeps its shape: the scales lie along its first axis."""
    return site.shape if site.kernel and weight.fmt.block_size == -1 else shape_of(site, transposed)


def lead_of(site: Site, transposed: bool) -> tuple[int, ...]:
    """The leading dimensions of a stack; none where the layout is transposed."""
    return () if transposed else site.lead


def add_parameters(node: ir.Node, site: Site, weight: StoredWeight, transposed: bool = False) -> list[ir.Value]:
    """Scales and zero points, if there are any, in the graph of one of the site's nodes."""
    graph, lead = graph_of(node), lead_of(site, transposed)
    scale = new_initializer(graph, f"{site.name}_scale", scale_tensor(weight, transposed, lead))
    values = [cast_scale(site, node, weight, scale)]
    if weight.zp is not None:
        values.append(new_initializer(graph, f"{site.name}_zero_point", zero_point_tensor(weight, transposed, lead)))
    return values


def cast_scale(
    site: Site,
    node: ir.Node,
    weight: StoredWeight,
    scale: ir.Value,
    initializer: Callable[[str, ir.TensorProtocol], ir.Value] | None = None,
) -> ir.Value:
    """Scales in the type of the node's activations; runtimes cast narrow ones once, when they load the file.

    ``initializer`` gives the second scale its place in the file; without it the node has a copy of its own.
    """
    dtype, name = float_type(site, node), f"{node.name}_scale"
    if scale.dtype == dtype:
        return scale
    assert scale.shape is not None
    shape, to = scale.shape.numpy(), ir.AttrInt64("to", int(dtype))
    if weight.s2 is None:
        return add_node(node, "Cast", [scale], [to], output=Output(name, dtype, shape))
    cast = add_node(node, "Cast", [scale], [to], output=Output(f"{name}_float", dtype, shape))
    new = initializer or partial(new_initializer, graph_of(node))
    s2 = new(f"{site.name}_scale_2", second_scale_tensor(weight, dtype))
    return add_node(node, "Mul", [cast, s2], output=Output(name, dtype, shape))


def dequantize(
    site: Site,
    node: ir.Node,
    weight: StoredWeight,
    transposed: bool,
    op: str = "DequantizeLinear",
    domain: str = "",
    casts: bool = True,
) -> ir.Value:
    """The dequantized weight for one of the site's nodes: codes, scales and a node in front of it, in its graph.

    Without ``casts`` the file stores the scales in the type of the activations.
    """
    graph, dtype = graph_of(node), float_type(site, node)
    weight = weight.with_float_type(dtype, casts)
    shape = layout_of(site, weight, transposed)
    codes = new_initializer(
        graph, f"{site.name}_quantized", code_tensor(weight, transposed, lead_of(site, transposed), shape)
    )
    inputs = [codes, *add_parameters(node, site, weight, transposed)]
    attributes = blocked_attributes(site, weight, transposed)
    return add_node(node, op, inputs, attributes, output=Output(f"{node.name}_weight", dtype, shape), domain=domain)


def place(site: Site, node: ir.Node, weight: ir.Value, transposed: bool) -> None:
    """Connects ``weight``, in the layout of `layout_of`, to one of the site's nodes.

    Gemm with transB reads a transposed weight as it is, and becomes MatMul and Add for one that is not transposed.
    Weights of Conv and stacks are reshaped to their own dimensions.
    """
    trans_b = node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
    if is_table(node):
        assert transposed == site.transposed
        node.replace_input_with(0, weight)
    elif site.kernel:
        assert transposed
        node.replace_input_with(1, _reshaped(node, weight, site.shape))
    elif site.lead and transposed:
        w = _reshaped(node, weight, (*site.lead, site.c_out, site.c_in))
        node.replace_input_with(1, _transpose(site, node, w))
    elif trans_b and not transposed:
        _gemm_to_matmul(node, weight)
    elif trans_b or not transposed:
        node.replace_input_with(1, weight)
    else:
        node.replace_input_with(1, _transpose(site, node, weight))


def _reshaped(node: ir.Node, weight: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    if weight.shape is not None and tuple(weight.shape.numpy()) == shape:
        return weight
    to = constant(graph_of(node), f"shape_{'_'.join(map(str, shape))}", shape)
    name, dtype = f"{weight.name}_reshaped", weight.dtype or ir.DataType.FLOAT
    return add_node(node, "Reshape", [weight, to], output=Output(name, dtype, shape))


def _transpose(site: Site, node: ir.Node, weight: ir.Value) -> ir.Value:
    """A weight [..., c_out, c_in] as [..., c_in, c_out]."""
    rank = len(site.lead) + 2
    perm = ir.AttrInt64s("perm", [*range(rank - 2), rank - 1, rank - 2])
    name, dtype, shape = f"{weight.name}_transposed", weight.dtype or ir.DataType.FLOAT, shape_of(site, False)
    return add_node(node, "Transpose", [weight], [perm], output=Output(name, dtype, shape))


def as_float(node: ir.Node, value: ir.Value, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """``value``, cast to a float type."""
    to = ir.AttrInt64("to", int(dtype))
    return add_node(node, "Cast", [value], [to], output=Output(f"{value.name}_float", dtype, shape))


def _gemm_to_matmul(node: ir.Node, weight: ir.Value) -> None:
    """Gemm(transB=1) as MatMul and Add: onnxruntime never fuses a transposed weight."""
    graph, bias = graph_of(node), node.inputs[2] if len(node.inputs) > 2 else None
    old = node.outputs[0]
    matmul = ir.Node("", "MatMul", [node.inputs[0], weight], name=f"{node.name}_MatMul")
    new = [matmul]
    if bias is not None:
        matmul.outputs[0].name = f"{old.name}_product"
        new.append(ir.Node("", "Add", [matmul.outputs[0], bias], name=f"{node.name}_Add"))
    graph.insert_before(node, new)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], [old], [new[-1].outputs[0]])
