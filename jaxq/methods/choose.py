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
    """Sibling weights of one format, quantized by a method.

    Attributes:
        quantized: Codes and scales of the weight times ``s``.
        s: Scale of each input channel; the activation has to be divided by it. Ones without scaling.
        alpha: AWQ's alpha; `jaxq.methods.awq.IDENTITY` without scaling.
        clip_ratio: Clip ratio of each block and column; for searched block scales, their ratio to the plain ones.
    """

    quantized: Quantized
    s: Float[Array, "c_in"]
    alpha: Float[Array, ""]
    clip_ratio: Float[Array, "n_blocks c_out"]


Part = tuple[Float[Array, "c_in _"], WeightFormat]
"""The siblings of one format side by side, and that format."""


@dataclass(frozen=True)
class _SearchMoments:
    """Second moments for block scales and GPTQ, which all parts share.

    Attributes:
        h: Second moment of the scaled activation, shrunk.
        damped: ``h``, damped.
        factored: ``h``, factored for GPTQ; None for methods that round to nearest.
    """

    h: Array
    damped: Array
    factored: Factored | None


def choose(method: Method, parts: Sequence[Part], moments: Moments | None, spec: MethodSpec) -> list[Choice]:
    """Runs a method on sibling weights.

    Args:
        method: The method.
        parts: All weights that multiply an activation, those of one format side by side.
        moments: Moments of the activation; None without calibration data.
        spec: Settings of the method.

    Returns:
        A choice for each part; all share the scale of the input channels.

    Raises:
        JaxqError: the method needs moments, and there are none.

    Example:
        >>> from jaxq.formats.registry import IntegerFormat
        >>> from jaxq.methods.registry import ROUND_TO_NEAREST
        >>> fmt = IntegerFormat(block_size=2)
        >>> part = (jnp.array([[7.0], [-3.0]]), fmt)
        >>> (choice,) = choose(ROUND_TO_NEAREST, [part], None, MethodSpec("rtn", fmt))
        >>> choice.quantized.q.tolist(), choice.s.tolist()
        ([[7], [-3]], [1.0, 1.0])
    """
    s, alpha = jnp.ones(parts[0][0].shape[0]), jnp.array(IDENTITY, jnp.float32)
    if moments is None:
        if method.needs_data:
            raise JaxqError(f"method {spec.name!r} needs calibration data, and there is none")
        return [_choice(w, s, alpha, None, fmt, spec) for w, fmt in parts]
    h, searches = moments.h, method.searches or (spec.block_scales and method.needs_data)
    # From here on `h` is the moment of the activation divided by the scale.
    if method.scales:
        alphas, damping = jnp.array(alpha_grid(spec.alpha_step)), spec.damping if searches else None
        scaling = search_shared_scales(parts, moments, alphas, spec.search_columns, spec.batch_size, damping)
        s, alpha = scaling.s, alphas[scaling.best]
        h = scaled_moment(h, s)
    if searches:
        if spec.shrinkage:
            h = shrunk(h, moments.tokens, spec.shrinkage)
        factored = factor(h, spec.damping) if method.compensates else None
        search = _SearchMoments(h, damp(h, spec.damping), factored)
        return [_searched_choice(w, s, alpha, search, fmt, spec.descent_passes) for w, fmt in parts]
    h = h if method.clips else None
    return [_choice(w, s, alpha, h, fmt, spec) for w, fmt in parts]


@jit(static_argnames=("fmt", "spec"))
def _choice(w: Array, s: Array, alpha: Array, clip_h: Array | None, fmt: WeightFormat, spec: MethodSpec) -> Choice:
    """Round to nearest, with clip ratios searched where there is a moment for it."""
    scaled = w.astype(jnp.float32) * s[:, None]
    ratio = jnp.float32(1)
    if clip_h is not None:
        ratio = search_clip(scaled, clip_h, jnp.array(ratio_grid(spec.min_clip_ratio, spec.clip_step)), fmt)
    quantized = fmt.quantize(scaled, ratio)
    return Choice(quantized, s, alpha, jnp.broadcast_to(ratio, quantized.s.shape))


def _searched_choice(
    w: Array, s: Array, alpha: Array, search: _SearchMoments, fmt: WeightFormat, descent_passes: int
) -> Choice:
    """Searched block scales, with codes by GPTQ where the moment is factored for it, else the nearest codes.

    Not jitted as a whole: the functions of the moment alone compile once for all weights that multiply the activation.
    """
    scaled = values = _scaled(w, s)
    scales = search_block_scales(scaled, search.damped, fmt)
    if search.factored is not None:
        values = gptq_round_factored(scaled, search.h, search.factored, scales, fmt, descent_passes)
    quantized, ratio = _coded(scaled, values, scales, fmt)
    return Choice(quantized, s, alpha, ratio)


@jit
def _scaled(w: Array, s: Array) -> Array:
    return w.astype(jnp.float32) * s[:, None]


@jit(static_argnames="fmt")
def _coded(scaled: Array, values: Array, scales: Scales, fmt: WeightFormat) -> tuple[Quantized, Array]:
    """Codes of the values, and the ratio of the scales to the plain ones."""
    ratio = _step(scales, scaled.shape[0], fmt) / _step(fmt.plain_scales(scaled), scaled.shape[0], fmt)
    return fmt.encoded(values, scales), ratio


def _step(scales: Scales, c_in: int, fmt: WeightFormat) -> Array:
    """Magnitude of a scale in each block; all rows of a block have it, so the first is enough."""
    return jnp.abs(split(fmt.grid(scales, c_in).step, fmt.block_size)[:, 0])
