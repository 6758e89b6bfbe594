"""The quantization methods: from weights and moments to codes, scales and what was chosen on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxq.awq import IDENTITY, alpha_grid, ratio_grid, search_clip, search_scales
from jaxq.errors import JaxqError
from jaxq.formats import IntegerFormat, Quantized
from jaxq.statistics import Moments, output_error


@dataclass(frozen=True)
class MethodSpec:
    """A method with its knobs; hashable.

    Attributes:
        name: A key of `METHODS`.
        fmt: How weights are held.
        alpha_step: Step of AWQ's grid over alpha, in (0, 1].
        min_alpha: Least clip ratio, in (0, 1].
        clip_step: Step of the grid over clip ratios, in (0, 1].
        search_columns: Columns on which AWQ's scales are compared, evenly spaced; 0 for all.
        batch_size: Candidates of the scale search that are evaluated at a time; more needs more memory.
    """

    name: str
    fmt: IntegerFormat
    alpha_step: float = 0.1
    min_alpha: float = 0.5
    clip_step: float = 0.05
    search_columns: int = 0
    batch_size: int = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """What a method made of sibling weights.

    Attributes:
        quantized: Codes and scales of the weight times ``s``.
        s: Factor of each input channel; the activation has to be divided by it. Ones where there is no scaling.
        alpha: AWQ's alpha; `jaxq.awq.IDENTITY` where there is no scaling.
        clip_ratio: Clip ratio of each block and column.
    """

    quantized: Quantized
    s: Float[Array, "c_in"]
    alpha: Float[Array, ""]
    clip_ratio: Float[Array, "n_blocks c_out"]


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


@partial(jax.jit, static_argnames="spec")
def round_to_nearest(w: Float[Array, "c_in c_out"], moments: Moments | None, spec: MethodSpec) -> Choice:
    """Block scales from the greatest weight, codes by round to nearest even; ``moments`` are not used."""
    del moments
    return _choice(w, jnp.ones(w.shape[0]), jnp.array(IDENTITY, jnp.float32), None, spec)


def awq_lite(w: Float[Array, "c_in c_out"], moments: Moments, spec: MethodSpec) -> Choice:
    """Scales by activation and weight magnitude; see `jaxq.awq.search_scales`."""
    alphas = jnp.array(alpha_grid(spec.alpha_step))
    found = search_scales(w, moments, alphas, spec.fmt, spec.search_columns, spec.batch_size)
    return _choice(w, found.s, alphas[found.best], None, spec)


def awq_clip(w: Float[Array, "c_in c_out"], moments: Moments, spec: MethodSpec) -> Choice:
    """A clip ratio for each block and column; see `jaxq.awq.search_clip`."""
    return _choice(w, jnp.ones(w.shape[0]), jnp.array(IDENTITY, jnp.float32), moments.h, spec)


def awq_full(w: Float[Array, "c_in c_out"], moments: Moments, spec: MethodSpec) -> Choice:
    """AWQ-lite, then clip ratios searched on the scaled weights and activations."""
    alphas = jnp.array(alpha_grid(spec.alpha_step))
    found = search_scales(w, moments, alphas, spec.fmt, spec.search_columns, spec.batch_size)
    h = moments.h / found.s[:, None] / found.s[None, :]
    return _choice(w, found.s, alphas[found.best], h, spec)


@partial(jax.jit, static_argnames="spec")
def _choice(w: Array, s: Array, alpha: Array, clip_h: Array | None, spec: MethodSpec) -> Choice:
    scaled = w.astype(jnp.float32) * s[:, None]
    ratio = jnp.float32(1)
    if clip_h is not None:
        ratio = search_clip(scaled, clip_h, jnp.array(ratio_grid(spec.min_alpha, spec.clip_step)), spec.fmt)
    quantized = spec.fmt.quantize(scaled, ratio)
    return Choice(quantized, s, alpha, jnp.broadcast_to(ratio, quantized.s.shape))


def measure(w: Float[Array, "c_in c_out"], choice: Choice, moments: Moments | None, fmt: IntegerFormat) -> Errors:
    """Errors of each column of a choice, from its codes and scales as they are stored.

    Not jitted itself: it calls `output_error` three times, which compiles once.
    """
    d = weight_error(w, choice, fmt)
    if moments is None:
        return Errors(_energy(d), _energy(w), None, None, None)
    own, plain, energy = (output_error(x, moments.h) for x in (d, rounding_error(w, fmt), w.astype(jnp.float32)))
    return Errors(_energy(d), _energy(w), own, plain, energy)


@partial(jax.jit, static_argnames="fmt")
def weight_error(w: Float[Array, "c_in c_out"], choice: Choice, fmt: IntegerFormat) -> Float[Array, "c_in c_out"]:
    """``W' - W``: what the codes stand for, divided by the channels' factors, less the weight."""
    return fmt.dequantize(choice.quantized) / choice.s[:, None] - w.astype(jnp.float32)


@partial(jax.jit, static_argnames="fmt")
def rounding_error(w: Float[Array, "c_in c_out"], fmt: IntegerFormat) -> Float[Array, "c_in c_out"]:
    """``W' - W`` of plain round to nearest."""
    return fmt.round_trip(w) - w.astype(jnp.float32)


@jax.jit
def _energy(w: Float[Array, "c_in c_out"]) -> Float[Array, "c_out"]:
    return jnp.sum(jnp.square(w.astype(jnp.float32)), axis=0)


Choose = Callable[..., Choice]  # (w, moments or None, spec); methods that need data take no None


@dataclass(frozen=True)
class Method:
    """What the pipeline must know of a method.

    Attributes:
        choose: The method itself, a pure function made of jitted ones.
        needs_data: It searches on moments.
        unscaled: The method to take in its place where an activation cannot be scaled; "" if it scales none.
    """

    choose: Choose
    needs_data: bool
    unscaled: str = ""


METHODS = {
    "rtn": Method(round_to_nearest, needs_data=False),
    "rtn_dq": Method(round_to_nearest, needs_data=False),
    "awq_lite": Method(awq_lite, needs_data=True, unscaled="rtn_dq"),
    "awq_clip": Method(awq_clip, needs_data=True),
    "awq_full": Method(awq_full, needs_data=True, unscaled="awq_clip"),
}
"""Methods by name. ``rtn`` and ``rtn_dq`` choose alike and are written differently: see `jaxq.forms`."""


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        JaxqError: there is none.
    """
    if name not in METHODS:
        raise JaxqError(f"method.name is {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
