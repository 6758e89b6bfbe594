"""Errors of a quantized weight, column by column."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxq.formats.base import Quantized
from jaxq.formats.registry import WeightFormat
from jaxq.methods.choose import Choice
from jaxq.methods.columns import map_columns, peak_column
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import Moments, output_error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Errors:
    """Squared errors of each column. Those of the output need moments; they are None without.

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
    """Errors of each column of a quantized weight, from the codes and scales that are stored.

    Not jitted as a whole: so `output_error`, called three times, compiles once. Wide weights are measured some columns
    at a time.

    Args:
        w: The weight.
        choice: Its codes and scales.
        moments: Moments of the activation; None without calibration data.
        fmt: The format of the weight.
        target: The weight that the method approximated, where it is not ``w`` (`corrected_target`): output errors are
            then those against the target.
    """

    def errors(w: Array, quantized: Quantized, target: Array | None) -> Errors:
        return _measure(w, replace(choice, quantized=quantized), moments, fmt, target)

    return map_columns(errors, w, choice.quantized, target, anchor=peak_column(w, jnp.ones(w.shape[0])))


def _measure(w: Array, choice: Choice, moments: Moments | None, fmt: WeightFormat, target: Array | None) -> Errors:
    d = weight_error(w, choice, fmt)
    if moments is None:
        return Errors(_energy(d), _energy(w), None, None, None)
    error, rtn_error, reference = d, rounding_error(w, fmt), w.astype(jnp.float32)
    if target is not None:
        # From the weight to the target: W' - T = (W' - W) + (W - T).
        offset = reference - target
        error, rtn_error, reference = d + offset, rtn_error + offset, target
    return Errors(_energy(d), _energy(w), *(output_error(x, moments.h) for x in (error, rtn_error, reference)))


@jit(static_argnames="fmt")
def weight_error(w: Float[Array, "c_in c_out"], choice: Choice, fmt: WeightFormat) -> Float[Array, "c_in c_out"]:
    """``W' - W``, where ``W'`` is the dequantized weight divided by the scale of each input channel."""
    return fmt.dequantize(choice.quantized) / choice.s[:, None] - w.astype(jnp.float32)


@jit(static_argnames="fmt")
def rounding_error(w: Float[Array, "c_in c_out"], fmt: WeightFormat) -> Float[Array, "c_in c_out"]:
    """``W' - W`` of round to nearest, without any search."""
    return fmt.round_trip(w) - w.astype(jnp.float32)


@jit
def _energy(w: Float[Array, "c_in c_out"]) -> Float[Array, "c_out"]:
    return jnp.sum(jnp.square(w.astype(jnp.float32)), axis=0)
