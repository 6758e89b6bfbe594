"""Nodes that only rearrange, cast or cut a constant, as steps on an array of known shape."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from jaxq.graph.constants import FLOATS
from jaxq.graph.nodes import attribute, is_standard

Shape = tuple[int, ...]
Operands = tuple[str, list[ir.Attr], tuple[np.ndarray, ...]]
"""A node's operator, attributes and inputs after the first."""


@dataclass(frozen=True)
class Permuted:
    """Transpose."""

    perm: Shape

    @property
    def suffix(self) -> str:
        return "transposed"

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.perm)

    def shape(self, shape: Shape) -> Shape:
        return tuple(shape[i] for i in self.perm)

    def operands(self) -> Operands:
        return "Transpose", [ir.AttrInt64s("perm", self.perm)], ()


@dataclass(frozen=True)
class Reshaped:
    """Reshape, Squeeze, Unsqueeze or Flatten."""

    to: Shape

    @property
    def suffix(self) -> str:
        return "reshaped"

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.to)

    def shape(self, shape: Shape) -> Shape:
        return self.to

    def operands(self) -> Operands:
        return "Reshape", [], (np.array(self.to, np.int64),)


@dataclass(frozen=True)
class Converted:
    """Cast from one float type to another."""

    to: ir.DataType

    @property
    def suffix(self) -> str:
        return str(self.to.numpy())

    def apply(self, array: np.ndarray) -> np.ndarray:
        if array.dtype == np.float64 and self.to.itemsize == 2:
            array = array.astype(np.float32)  # as onnxruntime rounds: twice
        with np.errstate(over="ignore"):
            return array.astype(self.to.numpy())

    def shape(self, shape: Shape) -> Shape:
        return shape

    def operands(self) -> Operands:
        return "Cast", [ir.AttrInt64("to", int(self.to))], ()


@dataclass(frozen=True)
class Picked:
    """Gather of one entry of the first axis: an expert of a stack."""

    index: int

    @property
    def suffix(self) -> str:
        return str(self.index)

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array[self.index]

    def shape(self, shape: Shape) -> Shape:
        return shape[1:]

    def operands(self) -> Operands:
        return "Gather", [], (np.array(self.index, np.int64),)


@dataclass(frozen=True)
class Cut:
    """Slice, or one output of Split: start, stop and step of each axis."""

    bounds: tuple[tuple[int, int, int], ...]
    whole: Shape

    @property
    def suffix(self) -> str:
        cut = [(a, b) for (a, b, step), dim in zip(self.bounds, self.whole, strict=True) if (a, b, step) != (0, dim, 1)]
        return "_".join(f"{a}_to_{b}" for a, b in cut) or "sliced"

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(*bound) for bound in self.bounds)]

    def shape(self, shape: Shape) -> Shape:
        return tuple(len(range(*bound)) for bound in self.bounds)

    def operands(self) -> Operands:
        starts, stops, steps = (np.array(numbers, np.int64) for numbers in zip(*self.bounds, strict=True))
        return "Slice", [], (starts, stops, np.arange(len(self.bounds)), steps)


Step = Permuted | Reshaped | Converted | Picked | Cut

# The attributes of each operator from opset 13 on; older nodes with other attributes are no steps.
_ATTRIBUTES = {
    "Transpose": {"perm"},
    "Reshape": {"allowzero"},
    "Squeeze": set(),
    "Unsqueeze": set(),
    "Flatten": {"axis"},
    "Cast": {"to", "saturate", "round_mode"},
    "Gather": {"axis"},
    "Slice": set(),
    "Split": {"axis", "num_outputs"},
}


def read_step(node: ir.Node, output: ir.Value, shape: Shape) -> Step | None:
    """The step that a node takes from its first input to an output; None where it depends on anything else.

    Args:
        node: Any node.
        output: One of its outputs.
        shape: Shape of its first input.
    """
    if not is_standard(node, *_ATTRIBUTES):
        return None
    if not node.attributes.keys() <= _ATTRIBUTES[node.op_type]:
        return None
    if any(attr.is_ref() for attr in node.attributes.values()):
        return None
    numbers = [_integers(value) for value in node.inputs[1:] if value is not None]
    if any(n is None for n in numbers) or len(numbers) != len(node.inputs) - 1:
        return None
    try:
        return _READERS[node.op_type](node, output, shape, [n for n in numbers if n is not None])
    except (ValueError, IndexError, TypeError):  # not a valid node: onnxruntime will say so
        return None


def _integers(value: ir.Value) -> np.ndarray | None:
    """The numbers of a constant of integers."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return tensor.numpy()


def _transpose(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    attr = node.attributes.get("perm")
    perm = tuple(range(len(shape)))[::-1] if attr is None else tuple(attr.as_ints())
    return Permuted(perm) if sorted(perm) == list(range(len(shape))) else None


def _reshape(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    to = numbers[0].tolist()
    if not attribute(node, "allowzero", 0):
        to = [shape[i] if d == 0 else d for i, d in enumerate(to)]
    if -1 in to:
        known = math.prod(d for d in to if d != -1)
        to[to.index(-1)] = math.prod(shape) // known if known else -1
    fits = min(to, default=1) >= 0 and math.prod(to) == math.prod(shape)
    return Reshaped(tuple(to)) if fits else None


def _squeeze(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    axes = [a % len(shape) for a in numbers[0].tolist()] if numbers else [i for i, d in enumerate(shape) if d == 1]
    if any(shape[a] != 1 for a in axes):
        return None
    return Reshaped(tuple(d for i, d in enumerate(shape) if i not in axes))


def _unsqueeze(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    rank = len(shape) + numbers[0].size
    axes = {a % rank for a in numbers[0].tolist()}
    rest = iter(shape)
    return (
        Reshaped(tuple(1 if i in axes else next(rest) for i in range(rank))) if len(axes) == numbers[0].size else None
    )


def _flatten(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    axis = int(attribute(node, "axis", 1))
    axis += len(shape) if axis < 0 else 0
    return Reshaped((math.prod(shape[:axis]), math.prod(shape[axis:])))


def _cast(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    to = ir.DataType(int(attribute(node, "to", 0)))
    return Converted(to) if to in FLOATS else None


def _gather(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    """A scalar index on the first axis; any other Gather looks rows of a table up."""
    (index,) = numbers
    if index.ndim or attribute(node, "axis", 0) not in (0, -len(shape)) or not -shape[0] <= int(index) < shape[0]:
        return None
    return Picked(int(index) % shape[0])


def _slice(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    starts, stops, *rest = (n.tolist() for n in numbers)
    axes = rest[0] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    bounds = [(0, d, 1) for d in shape]
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if step < 1:
            return None
        bounds[axis] = slice(start, stop, step).indices(shape[axis])
    return Cut(tuple(bounds), shape)


def _split(node: ir.Node, output: ir.Value, shape: Shape, numbers: list[np.ndarray]) -> Step | None:
    axis, parts = int(attribute(node, "axis", 0)) % len(shape), len(node.outputs)
    size = -(-shape[axis] // parts)
    sizes = numbers[0].tolist() if numbers else [min(size, shape[axis] - i * size) for i in range(parts)]
    if len(sizes) != parts or min(sizes) < 0 or sum(sizes) != shape[axis]:
        return None
    start = sum(sizes[: output.index() or 0])
    bounds = [(0, d, 1) for d in shape]
    bounds[axis] = (start, start + sizes[output.index() or 0], 1)
    return Cut(tuple(bounds), shape)


_READERS: dict[str, Callable[[ir.Node, ir.Value, Shape, list[np.ndarray]], Step | None]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
}
