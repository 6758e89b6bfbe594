"""Weights behind Transpose, Cast, Reshape and their like become initializers of their own, computed when asked for."""

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
    """What steps make of another tensor, each time it is asked for: nothing is held in between.

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
        """One entry of the view in another shape: of a stack one matrix, without a copy of all."""

        def pick(array: np.ndarray) -> np.ndarray:
            if array.ndim > 2 and array.shape[-2:] == shape[1:]:
                return array[np.unravel_index(index, array.shape[:-2])]
            return array.reshape(shape)[index]

        return _read(self._tensor, self.steps, self.dtype, pick).numpy()


def _same(array: np.ndarray) -> np.ndarray:
    return array


def own_mapping(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The same with a memory-mapping of its own, which others that read the tensor meanwhile do not hold open."""
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
    """A tensor of its own memory."""
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
    """Lets readers of Identity of a float constant read the constant; outputs of a graph stay."""
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
    """Whether a node takes its input of that index for a weight."""
    return index == 1 and node.op_type in PRODUCTS.get(node.domain, ())


def fold_views(model: ir.Model, names: Names) -> None:
    """Makes initializers of constants that products read through `steps`, where products alone read them.

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
    """Those at the ends of all chains of steps; None for an output of a graph on the way."""
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
            way = (*names, (str(node.name), str(output.name)))
            yield from _readers(output, (*steps, step), way, step.shape(shape))


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
    """Puts the nodes back in front of views that products still read: what is not quantized stays as it was."""
    names = Names(model)
    for graph in list(model.graphs()):
        made: dict[tuple[ir.Value, tuple[Step, ...]], ir.Value] = {}
        for value in list(graph.initializers.values()):
            view = value.const_value
            if isinstance(view, View) and all(is_product(node, index) for node, index in value.uses()):
                value.replace_all_uses_with(_restored(graph, view, made, names))
                del graph.initializers[str(value.name)]
        nodes = [node for value in made.values() if (node := value.producer()) is not None]
        if nodes:  # they read constants and each other only
            graph.insert_before(graph[0], nodes)


def _restored(
    graph: ir.Graph, view: View, made: dict[tuple[ir.Value, tuple[Step, ...]], ir.Value], names: Names
) -> ir.Value:
    """The last of a view's nodes' outputs; views that begin with the same steps share them."""
    value = view.source
    if value.graph is None:
        graph.register_initializer(value)
    for i, (step, (node_name, name)) in enumerate(zip(view.steps, view.names, strict=True)):
        key = (view.source, view.steps[: i + 1])
        if key not in made:
            op, attributes, numbers = step.operands()
            inputs = [value, *(names.initializer(graph, f"{name}_{op}", n) for n in numbers)]
            out = ir.Value(name=names.unique(name))
            twins = sum(producer.name == node_name for v in made.values() if (producer := v.producer()))  # of a Split
            own_name = f"{node_name}_{twins}" if twins else node_name
            ir.Node("", op, inputs, attributes, outputs=[out], name=own_name)
            made[key] = out
        value = made[key]
    return value
