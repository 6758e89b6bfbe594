"""The residual stream of a transformer: the sum that the product of a weight is added to."""

from dataclasses import dataclass

import onnx_ir as ir

from jaxq.graph.sites import Site

_SKIP_NORMS = ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
_MAX_NODES_BETWEEN = 4


@dataclass(frozen=True, eq=False)
class Residual:
    """A sum in which a product is one term.

    Attributes:
        other: The other term.
        sum: The first output of the node that adds.
    """

    other: ir.Value
    sum: ir.Value


def residual_of(site: Site) -> Residual | None:
    """The sum that a site's product is a term of; None where something else reads the product too.

    A bias and casts may come between. The sum may be an Add, or the first two inputs of a
    SkipLayerNormalization.
    """
    if len(site.nodes) != 1 or site.nested or site.kernel or site.has_table or site.count > 1:
        return None
    value = site.nodes[0].outputs[0]
    for _ in range(_MAX_NODES_BETWEEN):
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            return None
        ((node, index),) = uses
        if node.op_type == "Add" or (node.op_type in _SKIP_NORMS and index < 2):
            other = node.inputs[1 - index]
            if other is None:
                return None
            if other.const_value is None:
                return Residual(other, node.outputs[0])
            if node.op_type != "Add":
                return None
        elif node.op_type not in ("Cast", "Identity"):
            return None
        value = node.outputs[0]
    return None
