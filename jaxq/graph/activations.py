"""The activations that a weight's matrices multiply: all rows, a part of them for each matrix, or Conv's patches."""

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Patches:
    """How a Conv cuts its activation [batch, channels, ...] into patches; equal patches give equal matrix rows.

    Attributes:
        kernel, strides, dilations: One number for each spatial axis.
        pads: Zeros before the first entry of each spatial axis, then behind the last of each.
        auto_pad: "NOTSET", where ``pads`` count, "SAME_UPPER", "SAME_LOWER" or "VALID".
        groups: Number of groups of channels, each with a matrix of its own.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    groups: int = 1


@dataclass(frozen=True)
class Activation:
    """An activation and the rows of it that a weight's matrices multiply; equal activations have the same moments.

    Attributes:
        value: The activation: [..., c_in], [..., matrices, tokens, c_in] of a stack, or [batch, channels, ...] of Conv.
        count: Number of matrices.
        patches: How Conv cuts it.
    """

    value: ir.Value
    count: int = 1
    patches: Patches | None = None

    @property
    def name(self) -> str:
        """The activation's name, with the number of matrices or the patches where there are any."""
        if self.patches is not None:
            return f"{self.value.name} in {self.patches}"
        return str(self.value.name) if self.count == 1 else f"{self.value.name} for {self.count} matrices"

    @property
    def keys(self) -> tuple[str, ...]:
        """A name for the moments of each matrix."""
        return (self.name,) if self.count == 1 else tuple(f"{self.name}, {i}" for i in range(self.count))

    @property
    def shared_key(self) -> str:
        """The name of the moments of all matrices, where they multiply the same rows."""
        return self.name


def patches_of(node: ir.Node, shape: tuple[int, ...]) -> Patches:
    """How a Conv with a kernel of ``shape`` [c_out, channels / groups, ...] cuts its activation."""
    rank = len(shape) - 2
    ones, zeros = (1,) * rank, (0,) * (2 * rank)
    return Patches(
        kernel=shape[2:],
        strides=tuple(node.attributes.get_ints("strides", ones)),
        dilations=tuple(node.attributes.get_ints("dilations", ones)),
        pads=tuple(node.attributes.get_ints("pads", zeros)),
        auto_pad=node.attributes.get_string("auto_pad", "NOTSET"),
        groups=node.attributes.get_int("group", 1),
    )
