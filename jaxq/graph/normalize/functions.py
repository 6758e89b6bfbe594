"""Write out local functions that hold or read weights where they are called."""

from collections.abc import Iterator, Set
from functools import partial

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import defs

from jaxq.errors import JaxqError
from jaxq.graph.constants import FLOATS, constant_tensor, is_listed
from jaxq.graph.nodes import is_standard

_READERS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather")
Key = ir.OperatorIdentifier


def inline_functions(model: ir.Model) -> None:
    """Writes out, in place, the functions that hold weights or are called with some; others stay functions.

    Those are functions with MatMul, Gemm, Conv or Gather in them or in what they call, with a matrix of constants, or
    called with one. A function may be written for another opset than the model, as long as its operators mean the same
    in both; `constants_in_functions` lists the constants of functions that are not written out.

    Raises:
        JaxqError: functions call each other in a circle, or a call does not fit its function.
    """
    for function in model.functions.values():
        if "ai.onnx" in function.opset_imports:  # another name of the standard operators
            function.opset_imports.setdefault("", function.opset_imports.pop("ai.onnx"))
        if not _obstacle(model, function):
            opsets = function.opset_imports
            opsets.update({domain: model.opset_imports[domain] for domain in opsets if domain in model.opset_imports})
    while chosen := _with_weights(model) - _obstacles(model).keys():
        before = set(model.functions)
        try:
            passes.InlinePass(partial(_is_chosen, chosen))(model)
        except (ValueError, RuntimeError, ir.passes.InvariantError) as error:
            raise JaxqError(f"the model's functions cannot be written out: {error}") from error
        if before == set(model.functions):
            return


def _is_chosen(chosen: Set[Key], function: ir.Function) -> bool:
    return function.identifier() in chosen


def constants_in_functions(model: ir.Model) -> list[tuple[str, ir.TensorProtocol, str | None]]:
    """Constants of floats in functions that were not written out: name, tensor and reason.

    Vectors in functions without weights have no reason: these functions stay as they are.
    """
    constants, obstacles, called = [], _obstacles(model), _called(model)
    for key, function in model.functions.items():
        why = "no node calls" if key not in called else obstacles.get(key)
        reason = why and f"it lies in the function {_title(key)!r}, which {why}"
        constants += [(f"{key[1]}/{name}", tensor, reason) for name, tensor in _constants(function)]
    return constants


def _called(model: ir.Model) -> set[Key]:
    """Functions that are called by the graph, or by functions that are."""
    called: set[Key] = set()
    more = {node.op_identifier() for node in model.graph.all_nodes()} & model.functions.keys()
    while more:
        called |= more
        more = {n.op_identifier() for key in more for n in model.functions[key].all_nodes()} & model.functions.keys()
        more -= called
    return called


def _with_weights(model: ir.Model) -> Set[Key]:
    """Functions that are called, and that hold weights, read some, or call such functions."""
    calls = {key: {n.op_identifier() for n in f.all_nodes()} for key, f in model.functions.items()}
    chosen = {key for key, f in model.functions.items() if _has_reader(f) or _has_matrix(f)}
    while more := {key for key, called in calls.items() if called & chosen} - chosen:
        chosen |= more
    with_matrices = (node.op_identifier() for node in model.graph.all_nodes() if any(map(_is_matrix, node.inputs)))
    return (chosen | set(with_matrices)) & _called(model)


def _has_reader(function: ir.Function) -> bool:
    return any(is_standard(node, *_READERS) for node in function.all_nodes())


def _has_matrix(function: ir.Function) -> bool:
    return any(len(tensor.shape) > 1 for _, tensor in _constants(function))


def _is_matrix(value: ir.Value | None) -> bool:
    tensor = None if value is None else constant_tensor(value)
    return tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) > 1


def _constants(function: ir.Function) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Constants of floats that a report names; those in the function's subgraphs too."""
    values = [v for graph in function.subgraphs() for v in graph.initializers.values()]
    values += [node.outputs[0] for node in function.all_nodes() if is_standard(node, "Constant")]
    for value in values:
        tensor = constant_tensor(value)
        if tensor is not None and is_listed(value):
            yield str(value.name), tensor


def _obstacles(model: ir.Model) -> dict[Key, str]:
    """Functions that cannot be written out, and why."""
    obstacles = {}
    for key, function in model.functions.items():
        if why := _obstacle(model, function):
            obstacles[key] = why
    return obstacles


def _obstacle(model: ir.Model, function: ir.Function) -> str | None:
    for domain, version in function.opset_imports.items():
        in_model = model.opset_imports.get(domain, version)
        for node in function.all_nodes():
            if in_model != version and node.domain == domain and not _means_the_same(node, version, in_model):
                return (
                    f"is written for opset {version} of {domain or 'ai.onnx'!r}, the model for {in_model}, and "
                    f"{node.op_type} differs between them: convert the model first"
                )
    return None


def _means_the_same(node: ir.Node, a: int, b: int) -> bool:
    """True if an operator has the same inputs and attributes, with the same defaults, in two opsets."""
    if not defs.has(node.op_type, node.domain):
        return True  # a function, or an operator that onnx knows nothing of
    try:
        old, new = (defs.get_schema(node.op_type, version, node.domain) for version in (a, b))
    except defs.SchemaError:
        return False
    return old.since_version == new.since_version or _signature(old) == _signature(new)


def _signature(schema: defs.OpSchema) -> object:
    attributes = {
        name: (a.type, a.required, a.default_value.SerializeToString()) for name, a in schema.attributes.items()
    }
    return attributes, [(p.name, p.option) for p in schema.inputs], [(p.name, p.option) for p in schema.outputs]


def _title(key: Key) -> str:
    domain, name, _ = key
    return f"{domain}.{name}" if domain else name
