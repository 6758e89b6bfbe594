"""Errors of what a method chose, column by column."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxq.formats.registry import WeightFormat
from jaxq.methods.choose import Choice
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import Moments, output_error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Errors:
    """Squared errors of each column; those of the output need moments, and are None without.

    Attributes:
        weight: ``||W' - W||^2``.
        weight_energy: ``||W||^2``.
        output: Mean over tokens of ``(x W' - x W)^2``.
        output_rtn: The same for plain round to nearest.
        output_energy: Mean over tokens of ``(x W)^2``.
    """

    weight: Float[Array, "c_out"]
    weight_energy: Float[Array, "c_out"]
    output: Float[Array, "c_out"] | None
    output_rtn: Float[Array, "c_out"] | None
    output_energy: Float[Array, "c_out"] | None


def measure(
    w: Float[Array, "c_in c_out"],
    choice: Choice,
    moments: Moments | None,
    fmt: WeightFormat,
    target: Float[Array, "c_in c_out"] | None = None,
) -> Errors:
    """Errors of each column of a choice, from its codes and scales as they are stored.

    Not jitted itself: it calls `output_error` three times, which compiles once.

    Args:
        w: The weight.
        choice: What was chosen.
        moments: The activation's; None where there are none.
        fmt: How the weight is held.
        target: What the choice was to come near, where that is another weight (`corrected_target`): output
            errors are those against it.
    """
    d = weight_error(w, choice, fmt)
    if moments is None:
        return Errors(_energy(d), _energy(w), None, None, None)
    plain, wanted = rounding_error(w, fmt), w.astype(jnp.float32)
    if target is not None:
        off = wanted - target
        own, plain, wanted = d + off, plain + off, target
    else:
        own = d
    return Errors(_energy(d), _energy(w), *(output_error(x, moments.h) for x in (own, plain, wanted)))


@jit(static_argnames="fmt")
def weight_error(w: Float[Array, "c_in c_out"], choice: Choice, fmt: WeightFormat) -> Float[Array, "c_in c_out"]:
    """``W' - W``: what the codes stand for, divided by the channels' factors, less the weight."""
    return fmt.dequantize(choice.quantized) / choice.s[:, None] - w.astype(jnp.float32)


@jit(static_argnames="fmt")
def rounding_error(w: Float[Array, "c_in c_out"], fmt: WeightFormat) -> Float[Array, "c_in c_out"]:
    """``W' - W`` of plain round to nearest."""
    return fmt.round_trip(w) - w.astype(jnp.float32)


@jit
def _energy(w: Float[Array, "c_in c_out"]) -> Float[Array, "c_out"]:
    return jnp.sum(jnp.square(w.astype(jnp.float32)), axis=0)
