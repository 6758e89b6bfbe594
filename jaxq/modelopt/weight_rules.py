"""Which weights `jaxq.int4.quantize` excludes or gives another format: regular expressions and names, as job rules."""

import glob
import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import unmatched
from jaxq.modelopt.precision import Layer, get_num_bits, layer_block_size
from jaxq.modelopt.quantize_options import QuantizeOptions, read_strings
from jaxq.pipeline.job import Rule


def excluded_nodes(graph: ir.Graph, expressions: Sequence[str] | None) -> Iterator[str]:
    """Shell patterns for the names of the nodes that ``nodes_to_exclude`` matches.

    Args:
        graph: The model's main graph.
        expressions: Regular expressions, matched at the beginning of a name.

    Raises:
        JaxqError: an expression is no regular expression.
    """
    for expression in read_strings("nodes_to_exclude", () if expressions is None else expressions):
        try:
            pattern = re.compile(expression)
        except re.error as error:
            raise JaxqError(f"nodes_to_exclude has {expression!r}, which is no regular expression: {error}") from error
        yield from (glob.escape(str(node.name)) for node in graph if node.name and pattern.match(node.name))


def format_rules(model: ir.Model, options: QuantizeOptions, fmt: WeightFormat) -> list[Rule]:
    """Rules of ``precision_info``, then of ``layers_8bit``.

    Args:
        model: The model. Where ``precision_info`` names weights, the model is prepared as for quantization.
        options: The options of `quantize`.
        fmt: Format of all other weights.

    Raises:
        JaxqError: an option is malformed, or names no weight or node of the model.
    """
    # First, while nodes have the names of the file: preparing the model may change them.
    layers = _rules_by_layer(model.graph, options.layers_8bit, fmt)
    return [*_rules_by_weight(model, options.precision_info, fmt), *layers]


def _rules_by_layer(graph: ir.Graph, layers: str | Sequence[str], fmt: WeightFormat) -> list[Rule]:
    names = layers.split(",") if isinstance(layers, str) else read_strings("layers_8bit", layers)
    layer_paths = [_path(name.strip()) for name in names if name.strip()]
    nodes = [str(n.name) for n in graph if n.name and any(_contains(_path(n.name), path) for path in layer_paths)]
    if layer_paths and not nodes:
        raise JaxqError(f"layers_8bit is {layers!r}: no node has such a name")
    return [Rule(tuple(map(glob.escape, nodes)), make_format(_dtype(fmt, 8), -1))] if nodes else []


def _rules_by_weight(model: ir.Model, info: Mapping[str, Layer] | None, fmt: WeightFormat) -> list[Rule]:
    get_num_bits(info)  # raises for what is no dictionary
    rules = []
    for name, entry in (info or {}).items():
        bits, block_size = get_num_bits(info, name), layer_block_size(fmt.block_size, info, name)
        if isinstance(entry, Mapping) and entry.get("axis") not in (None, 0):
            raise JaxqError(
                f"precision_info[{name!r}] has the axis {entry['axis']!r}: give axis 0, blocks lie along input channels"
            )
        rules.append(Rule((glob.escape(str(name)),), make_format(_dtype(fmt, bits), block_size)))
    if rules:
        prepare(model)
    if unknown := unmatched(model.graph, [pattern for rule in rules for pattern in rule.patterns]):
        names = [name for name in info or {} if glob.escape(str(name)) in unknown]
        raise JaxqError(f"precision_info names {', '.join(map(repr, names))}: the model has no such weight")
    return rules


def _dtype(fmt: WeightFormat, bits: int) -> str:
    """The format's 4-bit dtype, int or uint, with another number of bits."""
    return f"{fmt.dtype.rstrip('4')}{bits}"


def _path(name: str) -> list[str]:
    """A name, split at dots and slashes."""
    return name.lstrip("/").replace("/", ".").split(".")


def _contains(path: Sequence[str], run: Sequence[str]) -> bool:
    """True if the elements of ``run`` stand one after the other in ``path``."""
    return any(list(path[i : i + len(run)]) == list(run) for i in range(len(path) - len(run) + 1))
