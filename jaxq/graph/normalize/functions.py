"""Local functions that have to do with weights are written out where they are called."""

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
    """Writes out, in place, the functions that hold weights or are given some; others stay functions.

    Those are functions with MatMul, Gemm, Conv or Gather in them or in what they call, with a matrix of constants, or
    called with one. A function for another version of ONNX's operators than the model's is taken where its operators
    mean the same in both; `left_functions` tells of those that cannot be.

    Raises:
        JaxqError: functions call each other in a circle, or a call does not fit its function.
    """
    for function in model.functions.values():
        if "ai.onnx" in function.opset_imports:  # another name of the standard operators
            function.opset_imports.setdefault("", function.opset_imports.pop("ai.onnx"))
        if not _why_not(model, function):
            own = function.opset_imports
            own.update({domain: model.opset_imports[domain] for domain in own if domain in model.opset_imports})
    while chosen := _concerned(model) - _left(model).keys():
        before = set(model.functions)
        try:
            passes.InlinePass(partial(_is_chosen, chosen))(model)
        except (ValueError, RuntimeError, ir.passes.InvariantError) as error:
            raise JaxqError(f"the model's functions cannot be written out: {error}") from error
        if before == set(model.functions):
            return


def _is_chosen(chosen: Set[Key], function: ir.Function) -> bool:
    return function.identifier() in chosen


def left_functions(model: ir.Model) -> list[tuple[str, ir.TensorProtocol, str | None]]:
    """Tensors of floats in functions that were not written out: name, tensor, and why; None for vectors."""
    found, left, called = [], _left(model), _called(model)
    for key, function in model.functions.items():
        why = "no node calls" if key not in called else left.get(key)
        reason = why and f"it lies in the function {_title(key)!r}, which {why}"
        found += [(f"{key[1]}/{name}", tensor, reason) for name, tensor in _constants(function)]
    return found


def _called(model: ir.Model) -> set[Key]:
    """Functions that are called by the graph, or by functions that are."""
    found: set[Key] = set()
    more = {node.op_identifier() for node in model.graph.all_nodes()} & model.functions.keys()
    while more:
        found |= more
        more = {n.op_identifier() for key in more for n in model.functions[key].all_nodes()} & model.functions.keys()
        more -= found
    return found


def _concerned(model: ir.Model) -> Set[Key]:
    """Functions that are called and have to do with weights."""
    calls = {key: {n.op_identifier() for n in f.all_nodes()} for key, f in model.functions.items()}
    chosen = {key for key, f in model.functions.items() if _has_reader(f) or _has_matrix(f)}
    while more := {key for key, called in calls.items() if called & chosen} - chosen:
        chosen |= more
    given = (node.op_identifier() for node in model.graph.all_nodes() if any(map(_is_matrix, node.inputs)))
    return (chosen | set(given)) & _called(model)


def _has_reader(function: ir.Function) -> bool:
    return any(is_standard(node, *_READERS) for node in function.all_nodes())


def _has_matrix(function: ir.Function) -> bool:
    return any(len(tensor.shape) > 1 for _, tensor in _constants(function))


def _is_matrix(value: ir.Value | None) -> bool:
    tensor = None if value is None else constant_tensor(value)
    return tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) > 1


def _constants(function: ir.Function) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Constants of floats, but for scalars and vectors of one number or none; initializers of subgraphs too."""
    values = [v for graph in function.subgraphs() for v in graph.initializers.values()]
    values += [node.outputs[0] for node in function.all_nodes() if is_standard(node, "Constant")]
    for value in values:
        tensor = constant_tensor(value)
        if tensor is not None and is_listed(value):
            yield str(value.name), tensor


def _left(model: ir.Model) -> dict[Key, str]:
    """Functions that cannot be written out, and why."""
    found = {}
    for key, function in model.functions.items():
        if why := _why_not(model, function):
            found[key] = why
    return found


def _why_not(model: ir.Model, function: ir.Function) -> str | None:
    for domain, version in function.opset_imports.items():
        there = model.opset_imports.get(domain, version)
        for node in function.all_nodes():
            if there != version and node.domain == domain and not _means_the_same(node, version, there):
                return (
                    f"is written for opset {version} of {domain or 'ai.onnx'!r}, the model for {there}, and "
                    f"{node.op_type} differs between them: convert the model first"
                )
    return None


def _means_the_same(node: ir.Node, a: int, b: int) -> bool:
    """Whether an operator has the same inputs and attributes, with the same defaults, in two opsets."""
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
