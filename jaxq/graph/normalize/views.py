"""Weights behind Transpose, Cast, Reshape and the like become initializers, computed each time they are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from jaxq.graph.constants import FLOATS, static_shape
from jaxq.graph.edit import Names, drop_unused
from jaxq.graph.nodes import STANDARD, is_standard
from jaxq.graph.normalize.steps import Converted, Shape, Step, read_step

PRODUCTS = {
    **dict.fromkeys(STANDARD, ("MatMul", "Gemm", "Conv", "ConvTranspose")),
    "com.microsoft": ("FusedMatMul", "FusedGemm", "FusedConv"),
}
"""Operators by domain whose second input is a weight."""


class View(ir.LazyTensor):
    """The result of steps on another tensor, computed each time it is read and never cached.

    Attributes:
        source: The initializer that the steps start from; it may have left the graph.
        steps: Applied one after the other.
        names: Of the node that each step was, and of its output.
    """

    def __init__(self, source: ir.Value, steps: tuple[Step, ...], names: tuple[tuple[str, str], ...]) -> None:
        assert source.const_value is not None
        tensor: ir.TensorProtocol = source.const_value
        dtype, shape = tensor.dtype, static_shape(tensor)
        for step in steps:
            dtype = step.to if isinstance(step, Converted) else dtype
            shape = step.shape(shape)
        super().__init__(lambda: _read(tensor, steps, dtype), dtype, ir.Shape(shape))
        self.source, self.steps, self.names = source, steps, names
        self._tensor: ir.TensorProtocol = tensor

    def entry(self, shape: Shape, index: int) -> np.ndarray:
        """One entry of the view in another shape, such as one matrix of a stack, without a copy of the whole."""

        def pick(array: np.ndarray) -> np.ndarray:
            if array.ndim > 2 and array.shape[-2:] == shape[1:]:
                return array[np.unravel_index(index, array.shape[:-2])]
            return array.reshape(shape)[index]

        return _read(self._tensor, self.steps, self.dtype, pick).numpy()


def _same(array: np.ndarray) -> np.ndarray:
    return array


def own_mapping(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The same tensor with a memory mapping of its own, which can be released while other threads read the tensor."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        base_dir=tensor.base_dir,
    )


def _read(
    tensor: ir.TensorProtocol,
    steps: tuple[Step, ...],
    dtype: ir.DataType,
    pick: Callable[[np.ndarray], np.ndarray] = _same,
) -> ir.Tensor:
    """The numbers of a tensor after steps, in memory of their own."""
    mapped = own_mapping(tensor) if isinstance(tensor, ir.ExternalTensor) else None
    whole = array = (mapped or tensor).numpy()
    for step in steps:
        array = step.apply(array)
    result = np.ascontiguousarray(pick(array))
    if np.may_share_memory(result, whole):
        result = result.copy()
    del whole, array
    if mapped is not None:
        mapped.release()
    return ir.Tensor(result, dtype=dtype)


def remove_identities(model: ir.Model) -> None:
    """Replaces Identity of a float constant by the constant; graph outputs stay."""
    for node in list(model.graph.all_nodes()):
        if not is_standard(node, "Identity") or node.graph is None:
            continue
        source, copy = node.inputs[0], node.outputs[0]
        if source is None or not _is_float_constant(source) or copy.is_graph_output():
            continue
        copy.replace_all_uses_with(source)
        node.graph.remove(node, safe=True)


def _is_float_constant(value: ir.Value) -> bool:
    known = value.is_initializer() and not value.is_graph_input() and value.const_value is not None
    return known and value.const_value is not None and value.const_value.dtype in FLOATS


@dataclass(frozen=True, eq=False)
class _Reader:
    """A node that reads a constant through steps."""

    node: ir.Node
    index: int
    steps: tuple[Step, ...]
    names: tuple[tuple[str, str], ...]
    shape: Shape

    @property
    def is_product(self) -> bool:
        return is_product(self.node, self.index) and len(self.shape) > 1


def is_product(node: ir.Node, index: int) -> bool:
    """True if a node multiplies by its input ``index`` as a weight."""
    return index == 1 and node.op_type in PRODUCTS.get(node.domain, ())


def _reads_float(node: ir.Node, index: int) -> bool:
    return is_product(node, index) or (index == 0 and is_standard(node, "Gather"))


def fold_views(model: ir.Model, names: Names) -> None:
    """Replaces constants that only products read, through steps, by initializers of the results.

    Args:
        model: With constants as initializers; changed in place. No tensor of floats is read.
        names: Those of the model.
    """
    for graph in list(model.graphs()):
        for source in list(graph.initializers.values()):
            if not _is_float_constant(source) or source.is_graph_output():
                continue
            assert source.const_value is not None
            readers = list(_readers(source, (), (), static_shape(source.const_value)))
            if all(reader is not None and reader.is_product for reader in readers):
                _fold(graph, source, [r for r in readers if r is not None and r.steps], names)


def _readers(
    value: ir.Value, steps: tuple[Step, ...], names: tuple[tuple[str, str], ...], shape: Shape
) -> Iterator[_Reader | None]:
    """The readers at the ends of all chains of steps; None for a graph output on the way."""
    if value.is_graph_output():
        yield None
    for node, index in value.uses():
        if is_standard(node, "Identity"):
            yield from _readers(node.outputs[0], steps, names, shape)
            continue
        outputs = [(v, read_step(node, v, shape)) for v in node.outputs] if index == 0 else []
        if not outputs or any(step is None for _, step in outputs):
            yield _Reader(node, index, steps, names, shape)
            continue
        for output, step in outputs:
            assert step is not None
            path = (*names, (str(node.name), str(output.name)))
            yield from _readers(output, (*steps, step), path, step.shape(shape))


def _fold(graph: ir.Graph, source: ir.Value, readers: list[_Reader], names: Names) -> None:
    views: dict[tuple[Step, ...], ir.Value] = {}
    for reader in readers:
        if reader.steps not in views:
            name = "_".join([str(source.name), *(step.suffix for step in reader.steps)])
            view = View(source, reader.steps, reader.names)
            views[reader.steps] = names.initializer(graph, name, view)
        old = reader.node.inputs[reader.index]
        reader.node.replace_input_with(reader.index, views[reader.steps])
        drop_unused([old])


def restore_views(model: ir.Model) -> None:
    """Puts the nodes back in front of views that are read as floats, so that skipped weights are stored as before."""
    names = Names(model)
    for graph in list(model.graphs()):
        restored: dict[tuple[ir.Value, tuple[Step, ...]], ir.Value] = {}
        for value in list(graph.initializers.values()):
            view = value.const_value
            if isinstance(view, View) and all(_reads_float(node, index) for node, index in value.uses()):
                value.replace_all_uses_with(_restored(graph, view, restored, names))
                del graph.initializers[str(value.name)]
        nodes = [node for value in restored.values() if (node := value.producer()) is not None]
        if nodes:  # they read constants and each other only
            graph.insert_before(graph[0], nodes)


def _restored(
    graph: ir.Graph, view: View, restored: dict[tuple[ir.Value, tuple[Step, ...]], ir.Value], names: Names
) -> ir.Value:
    """The output of a view's last node; views that begin with the same steps share their first nodes."""
    value = view.source
    if value.graph is None:
        graph.register_initializer(value)
    for i, (step, (node_name, name)) in enumerate(zip(view.steps, view.names, strict=True)):
        key = (view.source, view.steps[: i + 1])
        if key not in restored:
            op, attributes, numbers = step.operands()
            inputs = [value, *(names.initializer(graph, f"{name}_{op}", n) for n in numbers)]
            out = ir.Value(name=names.unique(name))
            # The outputs of one Split become nodes of their own, which need different names.
            twins = sum(producer.name == node_name for v in restored.values() if (producer := v.producer()))
            own_name = f"{node_name}_{twins}" if twins else node_name
            ir.Node("", op, inputs, attributes, outputs=[out], name=own_name)
            restored[key] = out
        value = restored[key]
    return value
