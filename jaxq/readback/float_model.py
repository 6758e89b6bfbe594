"""Turn a quantized model into a float model with the weights that its codes and scales stand for."""

from functools import partial

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from jaxq.graph.edit import drop_unused, new_initializer
from jaxq.graph.nodes import attribute
from jaxq.readback.constants import Place, array_at
from jaxq.readback.nodes import optional_input
from jaxq.readback.weights import read_weights

_DOMAINS = ("trt", "com.microsoft")


def float_model(model: ir.Model) -> None:
    """Replaces a model's quantized weights, in place, by the float weights that codes and scales stand for.

    MatMulNBits becomes MatMul and Add, GatherBlockQuantized becomes Gather; weights that jaxq cannot read stay.
    Weights are computed when they are read or saved, one at a time; files of external data must
    stay in place until then.

    Args:
        model: From `jaxq.files.model_file.load_model`. Its opset and file format stay.
    """
    passes.RemoveInitializersFromInputsPass()(model)
    for weight in read_weights(model):
        for place in weight.places:
            if isinstance(place, ir.Value) and not place.uses():
                continue  # replaced already, for nodes that read it in another way
            shape = weight.shape[::-1] if weight.nodes_transpose else weight.shape
            tensor = ir.LazyTensor(partial(_tensor_at, place), weight.float_dtype, ir.Shape(shape), name=weight.name)
            w = new_initializer(model.graph, weight.name, tensor)
            if isinstance(place, ir.Node):
                _replace_by_float_node(place, w)
            else:
                ir.convenience.replace_all_uses_with(place, w)
                drop_unused([place], detach=False)
    for domain in _DOMAINS:
        if not any(n.domain == domain for n in ir.traversal.RecursiveGraphIterator(model.graph)):
            model.opset_imports.pop(domain, None)
    passes.NameFixPass()(model)


def _tensor_at(place: Place) -> ir.Tensor:
    return ir.Tensor(np.ascontiguousarray(array_at(place)))


def _replace_by_float_node(node: ir.Node, w: ir.Value) -> None:
    """Puts MatMul and Add, or Gather, in place of a node that dequantizes inside."""
    assert node.graph is not None
    if node.op_type == "MatMulNBits":
        new = [ir.Node("", "MatMul", [node.inputs[0], w], name=f"{node.name}_MatMul")]
        if (bias := optional_input(node, 5)) is not None:
            new.append(ir.Node("", "Add", [new[0].outputs[0], bias], name=f"{node.name}_Add"))
    else:
        axis = ir.AttrInt64("axis", int(attribute(node, "gather_axis", 0)))
        new = [ir.Node("", "Gather", [w, node.inputs[1]], [axis], name=f"{node.name}_Gather")]
    old, out = node.outputs[0], new[-1].outputs[0]
    out.name, out.type, out.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    node.graph.insert_before(node, new)
    node.graph.remove(node)
    drop_unused(node.inputs, detach=False)
