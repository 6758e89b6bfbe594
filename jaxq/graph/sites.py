"""The weights of an ONNX graph that can be quantized, their sibling groups, and the skipped weights with reasons."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.graph.activations import Activation, patches_of
from jaxq.graph.already_quantized import find_already_quantized
from jaxq.graph.constants import is_listed, weight_shape
from jaxq.graph.nodes import attribute
from jaxq.graph.normalize.views import View
from jaxq.graph.readers import Reader, find_readers, is_table
from jaxq.graph.skip_reasons import constant_skip_reason, skip_reason
from jaxq.graph.skipped import Skipped, skip
from jaxq.graph.tensors import read_weight

MAX_PATCH_MOMENT_BYTES = 1 << 30
"""Bytes that the moments of a Conv's patches may take; they grow with the square of the kernel's size."""


@dataclass(frozen=True, eq=False)
class Site:
    """A weight that can be quantized, with the nodes that multiply by it.

    Attributes:
        weight: The initializer, stored [c_in, c_out], or [c_out, c_in] if ``transposed``; a stack [matrices, c_in,
            c_out], or [1, matrices, c_in, c_out]; or a kernel [matrices * c_out, channels, ...].
        nodes: MatMul, Gemm or Conv nodes with the weight as their second input, Gather nodes with it as their table, or
            both (a tied embedding, whose products may read it through Transpose and Cast).
        c_in, c_out: Rows of a matrix in ``y = x W``, and its columns. Of a table: the axis that is blocked, and the
            other one. Of a kernel: the size of a patch, and the outputs of a group.
        transposed: The products read it transposed, it is a kernel, or the table is blocked along its rows (axis 1).
        gathered: The weight is a table of Gather, and nothing else.
        nested: Those of the nodes that lie in subgraphs (If, Loop or Scan).
        count: Number of matrices: those of a stack, or one for each group of a Conv.
        kernel: The weight is a kernel of Conv.
    """

    weight: ir.Value
    nodes: tuple[ir.Node, ...]
    c_in: int
    c_out: int
    transposed: bool
    gathered: bool = False
    nested: frozenset[ir.Node] = frozenset()
    count: int = 1
    kernel: bool = False

    @property
    def name(self) -> str:
        """The weight's name; unlike names of nodes, names of weights are unique and never missing."""
        return str(self.weight.name)

    @property
    def activation_values(self) -> tuple[ir.Value, ...]:
        """The values ``x`` that the nodes multiply, each once: several for a shared weight, none for a table.

        Those in subgraphs do not count: calibration does not see them.
        """
        nodes = [node for node in self.nodes if not is_table(node) and node not in self.nested]
        return tuple(dict.fromkeys(node.inputs[0] for node in nodes if node.inputs[0] is not None))

    @property
    def has_table(self) -> bool:
        """Gather reads the weight, alone or beside products."""
        return any(map(is_table, self.nodes))

    @property
    def can_scale(self) -> bool:
        """True if AWQ can scale the rows: all readers multiply one activation, which can be divided by the scale."""
        return len(self.activation_values) == 1 and not (self.has_table or self.nested or self.kernel)

    @property
    def activations(self) -> tuple[Activation, ...]:
        """Activations that the nodes multiply, each once; none for a table, or a kernel too large for patch moments."""
        if not self.kernel:
            return tuple(Activation(value, self.count) for value in self.activation_values)
        if 4 * self.count * self.c_in**2 > MAX_PATCH_MOMENT_BYTES:
            return ()
        nodes = [node for node in self.nodes if node not in self.nested]
        pairs = [(node.inputs[0], patches_of(node, self.shape)) for node in nodes]
        return tuple(
            dict.fromkeys(Activation(value, self.count, patches) for value, patches in pairs if value is not None)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The initializer's shape."""
        return weight_shape(self.weight)

    @property
    def lead(self) -> tuple[int, ...]:
        """The dimensions of a stack before those of its matrices; () for any other weight."""
        return () if self.kernel else self.shape[:-2]

    @property
    def columns(self) -> int:
        """Columns of all matrices, side by side."""
        return self.count * self.c_out

    def array(self, index: int = 0) -> np.ndarray:
        """A copy of one of the matrices as [c_in, c_out]; no part of its file stays in memory.

        Raises:
            JaxqError: a weight is NaN or infinite.
        """
        rows, columns = (self.c_out, self.c_in) if self.transposed else (self.c_in, self.c_out)
        w = read_weight(self.weight, (self.count, rows, columns), index)
        if bad := w.size - int(np.isfinite(w).sum()):
            raise JaxqError(f"weight {self.name!r} has {bad} values that are NaN or infinite: fix or exclude it")
        return np.ascontiguousarray(w.T) if self.transposed else w


@dataclass(frozen=True, eq=False)
class Group:
    """Sites that read the same activation, in graph order; or one site that reads several (a shared weight) or none."""

    sites: tuple[Site, ...]
    activation_values: tuple[ir.Value, ...]

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The activations that the sites multiply."""
        return self.sites[0].activations

    @property
    def count(self) -> int:
        """Number of matrices of each site."""
        return self.sites[0].count

    @property
    def name(self) -> str:
        """The first activation's name; the weight's where there is none."""
        return str(self.activation_values[0].name) if self.activation_values else self.sites[0].name


def find_sites(
    graph: ir.Graph, exclude: Sequence[str] = (), gather_axis: int | None = None
) -> tuple[list[Site], list[Skipped]]:
    """The weights that can be quantized, in graph order, and the skipped weights with reasons.

    Every float tensor is in exactly one of the two lists. Scalars and vectors of at most one number are in neither.

    Args:
        graph: Main graph of a model that went through `prepare`.
        exclude: Patterns as in a shell (``*lm_head*``), compared with weight and node names.
        gather_axis: The axis, 0 or 1, along which tables of Gather are blocked; None skips them.
    """
    order = {node: i for i, node in enumerate(ir.traversal.RecursiveGraphIterator(graph))}
    sites: list[Site] = []
    skipped: list[Skipped] = []
    for weight in _float_weights(graph):
        readers = find_readers(weight)
        reason = skip_reason(weight, readers, graph, gather_axis) or _excluded(weight, readers, exclude)
        if reason is None:
            sites.append(_site(weight, readers, graph, gather_axis))
        else:
            skipped.append(skip(weight, reason))
    skipped += [skip(value, constant_skip_reason(value, graph)) for value in _constants(graph)]
    skipped += [skip(codes, reason) for codes, reason in find_already_quantized(_graphs(graph))]
    return sorted(sites, key=lambda site: order[site.nodes[0]]), skipped


def unmatched(graph: ir.Graph, exclude: Sequence[str]) -> list[str]:
    """Patterns of ``exclude`` that match no weight, for a warning: they may be misspelt."""
    names = [name for of_weight in names_of_weights(graph) for name in of_weight]
    return [p for p in exclude if not any(fnmatchcase(name, p) for name in names)]


def names_of_weights(graph: ir.Graph) -> Iterator[list[str]]:
    """For each float weight, the names that patterns are compared with: its own first, then those of its nodes."""
    return map(_names, _float_weights(graph))


def sibling_groups(sites: Sequence[Site]) -> list[Group]:
    """Sites grouped by the activation that they read, in graph order; tables and weights of subgraphs are alone."""
    groups: dict[tuple[Activation | ir.Value, ...], list[Site]] = {}
    for site in sites:
        alone = site.has_table or site.nested or not site.activations
        groups.setdefault((site.weight,) if alone else site.activations, []).append(site)
    return [Group(tuple(members), members[0].activation_values) for members in groups.values()]


def _graphs(graph: ir.Graph) -> list[ir.Graph]:
    return [graph, *graph.subgraphs()]


def _float_weights(graph: ir.Graph) -> Iterator[ir.Value]:
    for inner in _graphs(graph):
        for value in inner.initializers.values():
            if is_listed(value):
                yield value


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    """Floats that `jaxq.graph.prepare.tidy` leaves in Constant nodes: graph outputs, tensors of at most one number."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type == "Constant" and is_listed(node.outputs[0]):
            yield node.outputs[0]


def matches(weight: ir.Value, pattern: str) -> bool:
    """True if a shell pattern matches the name of the weight or of one of its nodes."""
    return any(fnmatchcase(name, pattern) for name in _names(weight))


def _excluded(weight: ir.Value, readers: Sequence[Reader], exclude: Sequence[str]) -> str | None:
    for pattern in exclude:
        if matches(weight, pattern):
            tied = len({reader.table for reader in readers}) > 1
            more = ", with the table of Gather that it is too: method.exclude=[] quantizes both" if tied else ""
            return f"excluded by the pattern {pattern!r}{more}"
    return None


def _names(weight: ir.Value) -> list[str]:
    """Names that patterns are compared with: the weight's, that of the initializer it is a view of, and its nodes'.

    A Transpose between the weight and a reader counts as one of its nodes.
    """
    source = [str(weight.const_value.source.name)] if isinstance(weight.const_value, View) else []
    nodes = [*(node for node, _ in weight.uses()), *(reader.node for reader in find_readers(weight))]
    return list(dict.fromkeys([str(weight.name), *source, *(str(node.name) for node in nodes)]))


def _site(weight: ir.Value, readers: Sequence[Reader], graph: ir.Graph, gather_axis: int | None) -> Site:
    nodes, shape = tuple(dict.fromkeys(reader.node for reader in readers)), weight_shape(weight)
    nested = frozenset(node for node in nodes if node.graph is not graph)
    if nodes[0].op_type == "Conv":
        count = int(attribute(nodes[0], "group", 1))
        c_in, c_out = int(np.prod(shape[1:])), shape[0] // count
        return Site(weight, nodes, c_in, c_out, True, nested=nested, count=count, kernel=True)
    gathered = all(reader.table for reader in readers)
    transposed = gather_axis == 1 if gathered else any(reader.transposed for reader in readers)
    rows, columns = shape[-2:]
    c_in, c_out = (columns, rows) if transposed else (rows, columns)
    return Site(weight, nodes, c_in, c_out, transposed, gathered, nested, int(np.prod(shape[:-2])))
