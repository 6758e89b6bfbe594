"""The quantization methods: from weights and moments to codes, scales and what was chosen on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxq.awq import IDENTITY, alpha_grid, ratio_grid, scaled_moment, search_clip, search_shared_scales
from jaxq.block_scales import search_block_scales
from jaxq.blocks import split
from jaxq.errors import JaxqError
from jaxq.formats import Quantized, Scales, WeightFormat
from jaxq.gptq import Factored, damp, factor, gptq_round_factored
from jaxq.statistics import Moments, output_error, shrunk


@dataclass(frozen=True)
class MethodSpec:
    """A method with its knobs; hashable.

    Attributes:
        name: A key of `METHODS`.
        fmt: How weights are held, where no rule says otherwise.
        alpha_step: Step of AWQ's grid over alpha, in (0, 1].
        min_alpha: Least clip ratio, in (0, 1].
        clip_step: Step of the grid over clip ratios, in (0, 1].
        search_columns: Columns on which AWQ's scales are compared, evenly spaced; 0 for all.
        batch_size: Candidates of the scale search that are evaluated at a time; more needs more memory.
        block_scales: Search the scales of blocks in every method that searches at all.
        damping: What is added to the diagonal of H for block scales and GPTQ, in units of its mean.
        sweeps: Passes of coordinate descent after GPTQ.
        ridge: How much weights are held back from making up for drift: as if so many tokens had shown none. Over the
            number of tokens it is the ridge of `jaxq.drift.corrected_target`.
        shrinkage: Tokens for which block scales and GPTQ hold the coupling of channels back; see
            `jaxq.statistics.shrunk`.
    """

    name: str
    fmt: WeightFormat
    alpha_step: float = 0.1
    min_alpha: float = 0.5
    clip_step: float = 0.05
    search_columns: int = 0
    batch_size: int = 1
    block_scales: bool = False
    damping: float = 0.05
    sweeps: int = 0
    ridge: float = 4096.0
    shrinkage: float = 900.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """What a method made of sibling weights.

    Attributes:
        quantized: Codes and scales of the weight times ``s``.
        s: Factor of each input channel; the activation has to be divided by it. Ones where there is no scaling.
        alpha: AWQ's alpha; `jaxq.awq.IDENTITY` where there is no scaling.
        clip_ratio: Clip ratio of each block and column; where scales were searched, their size over the plain one's.
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


Part = tuple[Float[Array, "c_in _"], WeightFormat]
"""Sibling weights side by side, and their format."""


@dataclass(frozen=True)
class Method:
    """What a method does.

    Attributes:
        scales: It scales input channels; see `jaxq.awq.search_scales`.
        clips: It chooses clip ratios, on the scaled weights and activations; see `jaxq.awq.search_clip`.
        searches: It searches the scales of blocks, on the scaled weights and activations; see
            `jaxq.block_scales.search_block_scales`. That looks at clip ratios too, which are not searched then.
        compensates: It chooses codes by GPTQ; see `jaxq.gptq.gptq_round`.
        propagates: Moments are those of the model whose earlier weights are quantized already, and weights make up for
            what these have changed; see `jaxq.drift`.
    """

    scales: bool = False
    clips: bool = False
    searches: bool = False
    compensates: bool = False
    propagates: bool = False

    @property
    def needs_data(self) -> bool:
        """It searches on moments."""
        return self != ROUND_TO_NEAREST


ROUND_TO_NEAREST = Method()

METHODS = {
    "rtn": ROUND_TO_NEAREST,
    "rtn_dq": ROUND_TO_NEAREST,
    "nvfp4": ROUND_TO_NEAREST,
    "awq_lite": Method(scales=True),
    "awq_clip": Method(clips=True),
    "awq_full": Method(scales=True, clips=True),
    "rtn_search": Method(searches=True),
    "gptq": Method(searches=True, compensates=True),
    "awq_gptq": Method(scales=True, searches=True, compensates=True),
    "best": Method(searches=True, compensates=True, propagates=True),
}
"""Methods by name. ``rtn``, ``rtn_dq`` and ``nvfp4`` choose alike: ``conf`` brings another form or dtype with them."""


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        JaxqError: there is none.
    """
    if name not in METHODS:
        raise JaxqError(f"method.name is {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def choose(method: Method, parts: Sequence[Part], moments: Moments | None, spec: MethodSpec) -> list[Choice]:
    """Runs a method on sibling weights.

    Args:
        method: The method.
        parts: All siblings of an activation, those of one format side by side.
        moments: The activation's; methods that search need them.
        spec: The method's knobs.

    Returns:
        A choice for each part, all with the same scale.
    """
    s, alpha = jnp.ones(parts[0][0].shape[0]), jnp.array(IDENTITY, jnp.float32)
    if moments is None:
        if method.needs_data:
            raise JaxqError(f"method {spec.name!r} searches on calibration data, and there is none")
        return [_choice(w, s, alpha, None, fmt, spec) for w, fmt in parts]
    h, searches = moments.h, method.searches or (spec.block_scales and method.needs_data)
    if method.scales:
        alphas, damping = jnp.array(alpha_grid(spec.alpha_step)), spec.damping if searches else None
        found = search_shared_scales(parts, moments, alphas, spec.search_columns, spec.batch_size, damping)
        s, alpha = found.s, alphas[found.best]
        h = scaled_moment(h, s)
    if searches:
        if spec.shrinkage:
            h = shrunk(h, moments.tokens, spec.shrinkage)
        damped = damp(h, spec.damping)
        factored = factor(h, spec.damping) if method.compensates else None
        return [_compensated(w, s, alpha, h, damped, factored, fmt, spec.sweeps) for w, fmt in parts]
    h = h if method.clips else None
    return [_choice(w, s, alpha, h, fmt, spec) for w, fmt in parts]


@partial(jax.jit, static_argnames=("fmt", "spec"))
def _choice(w: Array, s: Array, alpha: Array, clip_h: Array | None, fmt: WeightFormat, spec: MethodSpec) -> Choice:
    scaled = w.astype(jnp.float32) * s[:, None]
    ratio = jnp.float32(1)
    if clip_h is not None:
        ratio = search_clip(scaled, clip_h, jnp.array(ratio_grid(spec.min_alpha, spec.clip_step)), fmt)
    quantized = fmt.quantize(scaled, ratio)
    return Choice(quantized, s, alpha, jnp.broadcast_to(ratio, quantized.s.shape))


def _compensated(
    w: Array,
    s: Array,
    alpha: Array,
    h: Array,
    damped: Array,
    factored: Factored | None,
    fmt: WeightFormat,
    sweeps: int,
) -> Choice:
    """Searched block scales, and the nearest codes, or GPTQ's where the moment was factored for it.

    Not jitted as a whole: what depends on the moment alone is compiled once for all weights that multiply it.
    """
    scaled = _scaled(w, s)
    scales = search_block_scales(scaled, damped, fmt)
    values = scaled if factored is None else gptq_round_factored(scaled, h, factored, scales, fmt, sweeps)
    quantized, ratio = _coded(scaled, values, scales, fmt)
    return Choice(quantized, s, alpha, ratio)


@jax.jit
def _scaled(w: Array, s: Array) -> Array:
    return w.astype(jnp.float32) * s[:, None]


@partial(jax.jit, static_argnames="fmt")
def _coded(scaled: Array, values: Array, scales: Scales, fmt: WeightFormat) -> tuple[Quantized, Array]:
    """Codes of the values, and the scales over plain rounding's."""
    ratio = _step(scales, scaled.shape[0], fmt) / _step(fmt.find_scales(scaled), scaled.shape[0], fmt)
    return fmt.encoded(values, scales), ratio


def _step(scales: Scales, c_in: int, fmt: WeightFormat) -> Array:
    """Size of a code in each block."""
    return jnp.abs(split(fmt.grid(scales, c_in).step, fmt.block_size)[:, 0])


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
        target: What the choice was to come near, where that is another weight (`jaxq.drift.corrected_target`): output
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


@partial(jax.jit, static_argnames="fmt")
def weight_error(w: Float[Array, "c_in c_out"], choice: Choice, fmt: WeightFormat) -> Float[Array, "c_in c_out"]:
    """``W' - W``: what the codes stand for, divided by the channels' factors, less the weight."""
    return fmt.dequantize(choice.quantized) / choice.s[:, None] - w.astype(jnp.float32)


@partial(jax.jit, static_argnames="fmt")
def rounding_error(w: Float[Array, "c_in c_out"], fmt: WeightFormat) -> Float[Array, "c_in c_out"]:
    """``W' - W`` of plain round to nearest."""
    return fmt.round_trip(w) - w.astype(jnp.float32)


@jax.jit
def _energy(w: Float[Array, "c_in c_out"]) -> Float[Array, "c_out"]:
    return jnp.sum(jnp.square(w.astype(jnp.float32)), axis=0)
