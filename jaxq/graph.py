"""What of an ONNX graph can be quantized: weights, their siblings, and why the others are left alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from jaxq.errors import JaxqError
from jaxq.reading import Reading, patches_of

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_QUANTIZED_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_CAN = "the second input of MatMul, Gemm and Conv can be quantized"
_LEAST_COLUMN = 16  # the smallest block of any form

MOST_PATCH_MOMENTS = 1 << 30
"""Bytes that the moments of a Conv's patches may take; they grow with the square of the kernel's size."""


@dataclass(frozen=True, eq=False)
class Site:
    """A weight that can be quantized, with the nodes that multiply by it.

    Attributes:
        weight: The initializer, stored [c_in, c_out], or [c_out, c_in] if ``transposed``; a stack [matrices, c_in,
            c_out], or [1, matrices, c_in, c_out]; or a kernel [matrices * c_out, channels, ...].
        nodes: MatMul, Gemm or Conv nodes with the weight as their second input, or Gather nodes with it as their table.
        c_in, c_out: Rows of a matrix in ``y = x W``, and its columns. Of a table: the axis that is blocked, and the
            other one. Of a kernel: the size of a patch, and the outputs of a group.
        transposed: The nodes are Gemm with ``transB=1`` or Conv, or the table is blocked along its rows (axis 1).
        gathered: The weight is a table of Gather.
        count: Number of matrices: those of a stack, or one for each group of a Conv.
        kernel: The weight is a kernel of Conv.
    """

    weight: ir.Value
    nodes: tuple[ir.Node, ...]
    c_in: int
    c_out: int
    transposed: bool
    gathered: bool = False
    count: int = 1
    kernel: bool = False

    @property
    def name(self) -> str:
        """The weight's name: unique in a graph, and present where node names are not."""
        return str(self.weight.name)

    @property
    def activations(self) -> tuple[ir.Value, ...]:
        """The values ``x`` that the nodes multiply, each once: one, several of a shared weight, none of a table."""
        values = [None if self.gathered else node.inputs[0] for node in self.nodes]
        return tuple(dict.fromkeys(v for v in values if v is not None))

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What the nodes multiply, each once; none of a table, and of a kernel too large for moments of its patches."""
        if not self.kernel:
            return tuple(Reading(value, self.count) for value in self.activations)
        if 4 * self.count * self.c_in**2 > MOST_PATCH_MOMENTS:
            return ()
        pairs = [(node.inputs[0], patches_of(node, self.shape)) for node in self.nodes]
        return tuple(dict.fromkeys(Reading(value, self.count, how) for value, how in pairs if value is not None))

    @property
    def shape(self) -> tuple[int, ...]:
        """The initializer's shape."""
        return _shape(self.weight)

    @property
    def lead(self) -> tuple[int, ...]:
        """The dimensions of a stack in front of its matrices'; of all else none."""
        return () if self.kernel else self.shape[:-2]

    @property
    def columns(self) -> int:
        """Columns of all matrices, side by side."""
        return self.count * self.c_out

    @property
    def keeps_layout(self) -> bool:
        """Its codes lie as its floats do, [c_out, c_in], whatever the form: nodes that read it turn nothing."""
        return self.transposed and (self.gathered or self.kernel)

    def array(self, index: int = 0) -> np.ndarray:
        """A copy of one of the matrices as [c_in, c_out]; the file it lies in is not kept in memory.

        Raises:
            JaxqError: a weight is NaN or infinite.
        """
        rows, columns = (self.c_out, self.c_in) if self.transposed else (self.c_in, self.c_out)
        w = read_weight(self.weight, (self.count, rows, columns), index)
        if bad := w.size - int(np.isfinite(w).sum()):
            raise JaxqError(f"weight {self.name!r} has {bad} values that are NaN or infinite: mend or exclude it")
        return np.ascontiguousarray(w.T) if self.transposed else w


@dataclass(frozen=True)
class Declined:
    """A float weight that is left alone, and why."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


@dataclass(frozen=True, eq=False)
class Group:
    """Sites that read the same activation, in graph order; or one site that reads several (a shared weight) or none."""

    sites: tuple[Site, ...]
    activations: tuple[ir.Value, ...]

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What the sites multiply."""
        return self.sites[0].readings

    @property
    def count(self) -> int:
        """Number of matrices of each site."""
        return self.sites[0].count

    @property
    def name(self) -> str:
        """The first activation's name; the weight's where there is none."""
        return str(self.activations[0].name) if self.activations else self.sites[0].name


def prepare(model: ir.Model) -> None:
    """Brings a model, in place, to the shape that the other functions expect; its results stay the same.

    Constants become initializers, initializers are no longer inputs (onnxruntime fuses neither otherwise), nodes and
    values have names, and nodes stand in topological order.

    Raises:
        JaxqError: the graph has a cycle, or names that cannot be told apart.
    """
    for step in (
        passes.LiftConstantsToInitializersPass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.NameFixPass(),
        passes.TopologicalSortPass(),
    ):
        try:
            step(model)
        except (ValueError, RuntimeError) as error:
            raise JaxqError(f"the model's graph is not valid: {type(step).__name__} says {error}") from error


def find_sites(
    graph: ir.Graph, exclude: Sequence[str] = (), gather_axis: int | None = None
) -> tuple[list[Site], list[Declined]]:
    """The weights that can be quantized, in graph order, and all other float weights with the reason.

    Args:
        graph: Main graph of a model that went through `prepare`.
        exclude: Patterns as in a shell (``*lm_head*``), compared with weight and node names.
        gather_axis: The axis, 0 or 1, along which tables of Gather are blocked; None leaves them alone.
    """
    order = {node: i for i, node in enumerate(graph)}
    sites: list[Site] = []
    declined: list[Declined] = []
    for weight in _float_weights(graph):
        table = gather_axis is not None and all(node.op_type == "Gather" for node, _ in weight.uses())
        reason = _why_not(weight, graph, table, gather_axis is not None) or _excluded(weight, exclude)
        if reason is None:
            sites.append(_table(weight, gather_axis == 1) if table else _site(weight))
        else:
            declined.append(decline(weight, reason))
    for subgraph in graph.subgraphs():
        if subgraph is not graph:
            declined += [decline(w, "it lies in a subgraph (If, Loop or Scan)") for w in _float_weights(subgraph)]
    return sorted(sites, key=lambda site: order[site.nodes[0]]), declined


def unmatched(graph: ir.Graph, exclude: Sequence[str]) -> list[str]:
    """Patterns of ``exclude`` that match no weight: misspelt, perhaps."""
    names = [name for weight in _float_weights(graph) for name in _names(weight)]
    return [p for p in exclude if not any(fnmatchcase(name, p) for name in names)]


def sibling_groups(sites: Sequence[Site]) -> list[Group]:
    """Sites grouped by the activation that they read, in graph order; a table is a group of its own."""
    groups: dict[tuple[Reading | ir.Value, ...], list[Site]] = {}
    for site in sites:
        groups.setdefault(site.readings or (site.weight,), []).append(site)
    return [Group(tuple(members), members[0].activations) for members in groups.values()]


def read_weight(weight: ir.Value, shape: tuple[int, ...] | None = None, index: int = 0) -> np.ndarray:
    """A copy of an initializer, or of one entry of it in another shape; a memory-mapping is closed again."""
    tensor = weight.const_value
    assert tensor is not None
    array = np.array(tensor.numpy() if shape is None else tensor.numpy().reshape(shape)[index])
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return array


def in_memory(weight: ir.Value) -> ir.TensorProtocol:
    """A tensor with a memory-mapped initializer's values that needs no file beside the model; read when it is saved."""
    tensor = weight.const_value
    assert tensor is not None
    source = ir.Value(name=weight.name, const_value=tensor)
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: ir.Tensor(read_weight(source)), tensor.dtype, shape, name=weight.name)


def attribute(node: ir.Node, name: str, default: float) -> float:
    """A number among the node's attributes, or its default."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.value


def _float_weights(graph: ir.Graph) -> Iterator[ir.Value]:
    for value in graph.initializers.values():
        if value.const_value is not None and value.dtype in FLOAT_TYPES and value.const_value.size > 1:
            yield value


def _why_not(weight: ir.Value, graph: ir.Graph, table: bool, tables_too: bool) -> str | None:
    assert weight.const_value is not None
    rank = len(weight.const_value.shape)
    uses = weight.uses()
    if not uses:
        return "no node reads it"
    if weight.is_graph_output():
        return "it is an output of the model"
    if rank == 1:
        return "a vector (bias, norm or constant)"
    gathers = [node for node, index in uses if node.op_type == "Gather" and index == 0]
    if gathers and rank > 2:
        return _why_not_picked(weight, gathers[0])
    if tables_too and gathers and not table:
        others = dict.fromkeys(node.op_type for node, _ in uses if node not in gathers)
        return f"a table that Gather and {' and '.join(others)} read: one that Gather alone reads can be quantized"
    for node, index in uses:
        if node.graph is not graph:
            return "it is read inside a subgraph (If, Loop or Scan)"
        if reason := _why_not_gather(node, index) if table else _why_not_product(node, index):
            return reason
    if reason := _why_not_shape(weight):
        return reason
    if weight.dtype not in _QUANTIZED_TYPES:
        return f"its type is {weight.dtype}: float32 and float16 can be quantized"
    return None


def _why_not_product(node: ir.Node, index: int) -> str | None:
    if node.op_type == "Gather" and index == 0:
        return "a table that Gather reads: quantized where gather.axis is given"
    if node.domain == "com.microsoft" and node.op_type in ("MoE", "QMoE"):
        return f"read by {node.op_type} as input {index}: that operator's experts are left as they are"
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv") or index != 1:
        return f"read by {node.op_type} as input {index}: {_CAN}"
    if node.op_type == "Gemm" and (reason := _why_not_gemm(node)):
        return reason
    if node.inputs[0] is None or node.inputs[0].const_value is not None:
        return "it multiplies a constant, not an activation"
    return None


def _why_not_gather(node: ir.Node, index: int) -> str | None:
    if index != 0:
        return f"read by Gather as input {index}"
    if axis := attribute(node, "axis", 0):
        return f"read by a Gather with axis={axis:g}: tables whose rows are gathered can be quantized"
    return None


def _why_not_picked(weight: ir.Value, gather: ir.Node) -> str:
    index = gather.inputs[1]
    how = "a computed" if index is None or index.const_value is None else "a constant"
    what = f"a stack of shape {list(_shape(weight))} that Gather picks from by {how} index"
    return f"{what}: one that MatMul reads as a whole can be quantized"


def _why_not_shape(weight: ir.Value) -> str | None:
    nodes, shape = [node for node, _ in weight.uses()], _shape(weight)
    if any(node.op_type == "Conv" for node in nodes):
        return _why_not_kernel(weight)
    if any(d != 1 for d in shape[:-3]):
        return f"a stack of shape {list(shape)}: stacks [matrices, c_in, c_out] can be quantized"
    if len({bool(attribute(node, "transB", 0)) for node in nodes}) > 1:
        return "shared by Gemm nodes with and without transB"
    return None


def _why_not_kernel(weight: ir.Value) -> str | None:
    nodes, shape = [node for node, _ in weight.uses()], _shape(weight)
    if others := dict.fromkeys(node.op_type for node in nodes if node.op_type != "Conv"):
        return f"a kernel that Conv and {' and '.join(others)} read: one that Conv alone reads can be quantized"
    if len({attribute(node, "group", 1) for node in nodes}) > 1:
        return "shared by Conv nodes with different groups"
    if (size := int(np.prod(shape[1:]))) < _LEAST_COLUMN:
        return f"a kernel with {size} weights for each output: fewer than the least block, {_LEAST_COLUMN}"
    return None


def _why_not_gemm(node: ir.Node) -> str | None:
    for name, plain in (("transA", 0), ("alpha", 1.0), ("beta", 1.0)):
        if (value := attribute(node, name, plain)) != plain:
            return f"read by a Gemm with {name}={value:g}"
    return None


def matches(weight: ir.Value, pattern: str) -> bool:
    """Whether the weight's name or one of its nodes' fits a shell pattern."""
    return any(fnmatchcase(name, pattern) for name in _names(weight))


def _excluded(weight: ir.Value, exclude: Sequence[str]) -> str | None:
    for pattern in exclude:
        if matches(weight, pattern):
            return f"excluded by the pattern {pattern!r}"
    return None


def _names(weight: ir.Value) -> list[str]:
    """What patterns are compared with: the weight's name and its nodes'."""
    return [str(weight.name), *(str(node.name) for node, _ in weight.uses())]


def _site(weight: ir.Value) -> Site:
    nodes, shape = tuple(node for node, _ in weight.uses()), _shape(weight)
    if nodes[0].op_type == "Conv":
        groups = int(attribute(nodes[0], "group", 1))
        return Site(weight, nodes, int(np.prod(shape[1:])), shape[0] // groups, True, count=groups, kernel=True)
    transposed = bool(attribute(nodes[0], "transB", 0))
    rows, columns = shape[-2:]
    c_in, c_out = (columns, rows) if transposed else (rows, columns)
    return Site(weight, nodes, c_in, c_out, transposed, count=int(np.prod(shape[:-2])))


def _table(weight: ir.Value, along_rows: bool) -> Site:
    assert weight.const_value is not None
    rows, columns = (int(d) for d in weight.const_value.shape.numpy())
    c_in, c_out = (columns, rows) if along_rows else (rows, columns)
    return Site(weight, tuple(node for node, _ in weight.uses()), c_in, c_out, along_rows, gathered=True)


def decline(weight: ir.Value, reason: str) -> Declined:
    """A weight that is left alone."""
    assert weight.const_value is not None
    return Declined(str(weight.name), _shape(weight), weight.const_value.nbytes, reason)


def _shape(weight: ir.Value) -> tuple[int, ...]:
    assert weight.const_value is not None
    return tuple(int(d) for d in weight.const_value.shape.numpy())
