"""The operators that constants are followed through, each as ONNX defines it, on numpy arrays."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from jaxq.graph.nodes import attribute
from jaxq.readback.nodes import DEQUANTIZERS, QUANTIZERS, UnknownLayoutError, type_of


def _dequantize(node: ir.Node, x: np.ndarray, s: np.ndarray, zp: np.ndarray | None = None) -> np.ndarray:
    dtype = type_of(node.outputs[0]).numpy()
    if node.op_type == "TRT_MXFP8DequantizeLinear" and s.dtype == np.uint8:
        s = s.view(ml_dtypes.float8_e8m0fnu)
    w = x.astype(np.float32)
    if zp is not None:
        w -= _per_element(node, zp, w.shape)
    w *= _per_element(node, s, w.shape)
    return w.astype(dtype, copy=False)


def _quantize(node: ir.Node, x: np.ndarray, s: np.ndarray, zp: np.ndarray | None = None) -> np.ndarray:
    dtype = type_of(node.outputs[0])
    q = np.rint(x.astype(np.float32) / _per_element(node, s, x.shape))
    if zp is not None:
        q += _per_element(node, zp, x.shape)
    low = -(2 ** (dtype.bitwidth - 1)) if dtype.is_signed() else 0
    return np.clip(q, low, low + 2**dtype.bitwidth - 1).astype(np.int16).astype(dtype.numpy())


def _per_element(node: ir.Node, parameters: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scales or zero points in float32, in a shape that numpy broadcasts to the codes' ``shape``."""
    p = parameters.astype(np.float32)
    if p.size == 1:
        return p.reshape(())
    axis, block = blocks_of(node, shape, p.shape)
    if block <= 0 and p.ndim == len(shape):
        return p
    if block <= 0:
        return p.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return repeat_blocks(p, block, axis, shape[axis])


def blocks_of(node: ir.Node, shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int]:
    """The axis of a (de)quantizer's blocks or channels, and its block size.

    ModelOpt leaves attributes out where the scales' shape is enough: blocks then run along the axis on which it differs
    from the codes' shape. The number of blocks leaves several block sizes possible: the power of two among them is
    taken, or else the shortest.

    Args:
        node: The node, with or without the attributes ``axis`` and ``block_size``.
        shape: Shape of its codes.
        scales: Shape of its scales.

    Returns:
        The axis, and a block size of -1 for one scale a channel, 0 for one scale in all.

    Raises:
        UnknownLayoutError: attributes and shapes do not fit each other.
    """
    rank, block = len(shape), int(attribute(node, "block_size", 0))
    axis = int(attribute(node, "axis", 1))
    if block < 0:
        raise UnknownLayoutError(f"{node.op_type} with block_size={block}")
    if not np.prod(scales, dtype=int) > 1 and not block:
        axis = axis if -rank <= axis < rank else 0
        return axis % rank, -1 if scales and shape[axis] == 1 else 0
    # Where the file names no axis, or no block size, the one axis on which the shapes differ is the blocks' axis.
    differing = [i for i, (size, count) in enumerate(zip(shape, scales, strict=False)) if size != count]
    same_rank = len(scales) == rank > 1
    if same_rank and len(differing) == 1 and ("axis" not in node.attributes or not block):
        axis = differing[0]
    if rank > 1 and not -rank <= axis < rank:
        raise UnknownLayoutError(f"{node.op_type} with axis={axis} of codes of rank {rank}")
    axis %= rank
    if block or not same_rank:
        return axis, block or -1
    # Without a block size it follows from the number of blocks, within bounds.
    misfit = f"{node.op_type} with codes of shape {list(shape)} and scales of shape {list(scales)}"
    if len(differing) > 1:
        raise UnknownLayoutError(misfit)
    size, count = shape[axis], scales[axis]
    if count == 1 and rank == 2:
        return 1 - axis, -1
    if not 0 < count <= size:
        raise UnknownLayoutError(misfit)
    shortest = -(-size // count)
    power = 1 << (shortest - 1).bit_length()
    return axis, power if count > 1 and -(-size // power) == count else shortest


def repeat_blocks(parameters: np.ndarray, block: int, axis: int, size: int) -> np.ndarray:
    """Each entry ``block`` times along an axis of ``size`` elements; the last block may be shorter."""
    return np.take(parameters, np.arange(size) // block, axis)


def _cast(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return x.astype(ir.DataType(int(attribute(node, "to", 1))).numpy(), copy=False)


def _reshape(node: ir.Node, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    zero_copies = not attribute(node, "allowzero", 0)
    return x.reshape([x.shape[i] if zero_copies and not d else int(d) for i, d in enumerate(shape)])


def _pad(node: ir.Node, x: np.ndarray, pads: np.ndarray, value: np.ndarray | None = None) -> np.ndarray:
    del node
    ends = [(int(a), int(b)) for a, b in pads.reshape(2, -1).T]
    return np.pad(x, ends, constant_values=0 if value is None else value.item())


def _slice(node: ir.Node, x: np.ndarray, starts: np.ndarray, ends: np.ndarray, *more: np.ndarray | None) -> np.ndarray:
    del node
    axes = np.arange(len(starts)) if not more or more[0] is None else more[0]
    steps = np.ones_like(starts) if len(more) < 2 or more[1] is None else more[1]
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    return x[tuple(index)]


OPERATORS: dict[tuple[str, str], Callable[..., np.ndarray]] = {
    **dict.fromkeys(DEQUANTIZERS, _dequantize),
    **dict.fromkeys(QUANTIZERS, _quantize),
    ("", "Identity"): lambda node, x: x,
    ("", "Cast"): _cast,
    ("", "Transpose"): lambda node, x: np.transpose(x, node.attributes.get_ints("perm", None)),
    ("", "Reshape"): _reshape,
    ("", "Pad"): _pad,
    ("", "Slice"): _slice,
    ("", "Gather"): lambda node, x, indices: np.take(x, indices, int(attribute(node, "axis", 0))),
    ("", "Mul"): lambda node, x, y: x * y,
    ("", "Sub"): lambda node, x, y: x - y,
    ("", "Pow"): lambda node, x, y: np.power(x, y),
}
"""Operators that constants are followed through, each as a function of the node and its inputs."""
