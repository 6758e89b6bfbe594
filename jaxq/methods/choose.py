"""Run a method on sibling weights: from weights and moments to codes and scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxq.errors import JaxqError
from jaxq.formats.base import Quantized, Scales
from jaxq.formats.registry import WeightFormat
from jaxq.methods.awq import IDENTITY, alpha_grid, ratio_grid, scaled_moment, search_clip, search_shared_scales
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.gptq import Factored, damp, factor, gptq_round_factored
from jaxq.methods.registry import Method, MethodSpec
from jaxq.numerics.blocks import split
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import Moments, shrunk


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """What a method made of sibling weights.

    Attributes:
        quantized: Codes and scales of the weight times ``s``.
        s: Factor of each input channel; the activation has to be divided by it. Ones where there is no scaling.
        alpha: AWQ's alpha; `jaxq.methods.awq.IDENTITY` where there is no scaling.
        clip_ratio: Clip ratio of each block and column; where scales were searched, their size over the plain one's.
    """

    quantized: Quantized
    s: Float[Array, "c_in"]
    alpha: Float[Array, ""]
    clip_ratio: Float[Array, "n_blocks c_out"]


Part = tuple[Float[Array, "c_in _"], WeightFormat]
"""Sibling weights side by side, and their format."""


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
        return [_compensated(w, s, alpha, h, damped, factored, fmt, spec.descent_passes) for w, fmt in parts]
    h = h if method.clips else None
    return [_choice(w, s, alpha, h, fmt, spec) for w, fmt in parts]


@jit(static_argnames=("fmt", "spec"))
def _choice(w: Array, s: Array, alpha: Array, clip_h: Array | None, fmt: WeightFormat, spec: MethodSpec) -> Choice:
    scaled = w.astype(jnp.float32) * s[:, None]
    ratio = jnp.float32(1)
    if clip_h is not None:
        ratio = search_clip(scaled, clip_h, jnp.array(ratio_grid(spec.min_clip_ratio, spec.clip_step)), fmt)
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
    descent_passes: int,
) -> Choice:
    """Searched block scales, and the nearest codes, or GPTQ's where the moment was factored for it.

    Not jitted as a whole: what depends on the moment alone is compiled once for all weights that multiply it.
    """
    scaled = _scaled(w, s)
    scales = search_block_scales(scaled, damped, fmt)
    values = scaled if factored is None else gptq_round_factored(scaled, h, factored, scales, fmt, descent_passes)
    quantized, ratio = _coded(scaled, values, scales, fmt)
    return Choice(quantized, s, alpha, ratio)


@jit
def _scaled(w: Array, s: Array) -> Array:
    return w.astype(jnp.float32) * s[:, None]


@jit(static_argnames="fmt")
def _coded(scaled: Array, values: Array, scales: Scales, fmt: WeightFormat) -> tuple[Quantized, Array]:
    """Codes of the values, and the scales over plain rounding's."""
    ratio = _step(scales, scaled.shape[0], fmt) / _step(fmt.find_scales(scaled), scaled.shape[0], fmt)
    return fmt.encoded(values, scales), ratio


def _step(scales: Scales, c_in: int, fmt: WeightFormat) -> Array:
    """Size of a code in each block."""
    return jnp.abs(split(fmt.grid(scales, c_in).step, fmt.block_size)[:, 0])
