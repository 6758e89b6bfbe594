"""Nodes of an ONNX graph: their attributes, their subgraphs, and the names of ONNX's own set of operators."""

import onnx_ir as ir

STANDARD = ("", "ai.onnx")
"""Both names of the domain of ONNX's own operators."""


def is_standard(node: ir.Node, *operators: str) -> bool:
    """True if a node is one of these operators of ONNX's own domain."""
    return node.op_type in operators and node.domain in STANDARD


def attribute(node: ir.Node, name: str, default: float) -> float:
    """The numeric attribute ``name`` of a node, or ``default`` where the node has none."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.value


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Branches and loop bodies of a node (If, Loop, Scan): those that are its own attributes, not theirs in turn."""
    attributes = [attr for attr in node.attributes.values() if not attr.is_ref()]
    single = [attr.as_graph() for attr in attributes if attr.type == ir.AttributeType.GRAPH]
    lists = [graph for attr in attributes if attr.type == ir.AttributeType.GRAPHS for graph in attr.as_graphs()]
    return single + lists
