"""Convert a model to a newer opset: with onnxscript's converter, and by hand where that converter is wrong."""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.version_converter import convert_version

from jaxq.errors import JaxqError
from jaxq.graph.edit import Names, graph_of

_ASIDE = "jaxq.aside"
_CONVERTER = "onnxscript.version_converter"
_EXPECTED = "fallback is enabled"  # a warning without harm: onnx's own converter takes over for an old opset

FLOAT8_OPSET = 19
"""The first opset whose Cast knows float8."""


def raise_opset(model: ir.Model, opset: int, ir_version: int) -> None:
    """Converts a model, in place, to at least these versions of the operators and the file format.

    Functions are written out, and nodes that no output depends on are removed: `jaxq.graph.unused.remove_unused`
    lists the weights among them.

    Raises:
        JaxqError: an operator cannot be converted.
    """
    old = model.opset_imports.get("", opset)
    if old < opset:
        try:
            passes.InlinePass()(model)  # as the converter does: operators inside functions need the steps below first
            converted = _spread_group_norms(model) if 18 <= old < 21 <= opset else []
            with _hidden_from_converter(model, converted), _collected_warnings(_CONVERTER) as records:
                convert_version(model, opset, fallback=True)
        except Exception as error:  # the converter raises many kinds, and a pass that fails wraps the reason
            raise _conversion_error(old, opset, str(error.__cause__ or error)) from error
        for record in records:  # the converter logs a failure and goes on: its result would be wrong
            if _EXPECTED not in record.getMessage():
                raise _conversion_error(old, opset, _reason(record))
        if model.opset_imports.get("", 0) < opset:
            raise _conversion_error(old, opset, "an operator has no conversion")
    model.ir_version = max(model.ir_version, ir_version)


def _conversion_error(old: int, opset: int, why: str) -> JaxqError:
    why = " ".join(why.split()).rstrip(".")
    other = "form=matmulnbits" if opset > FLOAT8_OPSET else "scale_dtype=float16"
    return JaxqError(
        f"the model cannot be converted from opset {old} to {opset}: {why}; export it with opset {opset}, or take "
        f"{other}, which leaves the opset as it is"
    )


def _reason(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return str(error or record.getMessage())


def _spread_group_norms(model: ir.Model) -> list[ir.Node]:
    """Gives each GroupNormalization of opset 18 a scale and a bias for each channel, as it has from opset 21 on.

    Before, it has one for each group. The number of channels is taken from the activation when the model runs, since
    its shape need not be known; onnxruntime computes what is constant when it loads the file.

    Returns:
        The nodes, which are those of opset 21 now.
    """
    nodes = [n for n in model.graph.all_nodes() if n.op_type == "GroupNormalization" and n.domain == ""]
    names = Names(model)
    for node in nodes:
        groups = node.attributes.get("num_groups")
        if groups is None or len(node.inputs) != 3 or None in node.inputs:
            raise JaxqError(f"GroupNormalization {node.name!r} lacks its scale, its bias or num_groups")
        _spread_vectors(node, groups.as_int(), names)
    return nodes


def _spread_vectors(node: ir.Node, groups: int, names: Names) -> None:
    graph, x, prefix = graph_of(node), node.inputs[0], node.name or node.outputs[0].name

    def constant(suffix: str, *numbers: int) -> ir.Value:
        return names.initializer(graph, f"{prefix}_{suffix}", np.array(numbers, np.int64))

    def add(op: str, *inputs: ir.Value | None, attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        name = names.unique(f"{prefix}_{op}")
        new = ir.Node("", op, inputs, attributes, outputs=[ir.Value(name=name)], name=name)
        graph.insert_before(node, new)
        return new.outputs[0]

    last, flat = constant("last", 1), constant("flat", -1)
    second = [ir.AttrInt64("start", 1), ir.AttrInt64("end", 2)]
    channels_per_group = add("Div", add("Shape", x, attributes=second), constant("groups", groups))
    shape = add("Concat", constant("one", 1), channels_per_group, attributes=[ir.AttrInt64("axis", 0)])
    for index in (1, 2):
        spread = add("Expand", add("Unsqueeze", node.inputs[index], last), shape)
        node.replace_input_with(index, add("Reshape", spread, flat))


@contextmanager
def _hidden_from_converter(model: ir.Model, converted: Collection[ir.Node]) -> Iterator[None]:
    """Hides nodes from the converter: those converted already, and onnxruntime's operators in ONNX's domain.

    SimplifiedLayerNormalization is such an operator: no opset changes it, and the converter would stop at it.
    """
    hidden = [n for n in model.graph.all_nodes() if n in converted or (n.domain == "" and not onnx.defs.has(n.op_type))]
    for node in hidden:
        node.domain = _ASIDE
    if hidden:
        model.opset_imports[_ASIDE] = 1
    try:
        yield
    finally:
        for node in model.graph.all_nodes():  # a conversion can have made new ones
            if node.domain == _ASIDE:
                node.domain = ""
        model.opset_imports.pop(_ASIDE, None)


class _WarningCollector(logging.Handler):
    """Collects the warnings of a logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _collected_warnings(name: str) -> Iterator[list[logging.LogRecord]]:
    """Warnings and errors that a logger is given, which are not shown meanwhile."""
    logger, handler = logging.getLogger(name), _WarningCollector()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
