"""Run a method on sibling weights: from weights and moments to codes and scales."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxq.errors import JaxqError
from jaxq.formats.base import Quantized, Scales
from jaxq.formats.registry import WeightFormat
from jaxq.methods.awq import search_clip, search_shared_scales
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.columns import map_columns, peak_column
from jaxq.methods.gptq import Factored, damp, factor, gptq_round_factored
from jaxq.methods.grids import IDENTITY, alpha_grid, ratio_grid
from jaxq.methods.registry import Method, MethodSpec
from jaxq.numerics.blocks import split
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import Moments, scaled_moment, shrunk


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """Sibling weights of one format, quantized by a method.

    Attributes:
        quantized: Codes and scales of the weight times ``s``.
        s: Scale of each input channel; the activation has to be divided by it. Ones without scaling.
        alpha: AWQ's alpha; `jaxq.methods.grids.IDENTITY` without scaling.
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
        return [_in_runs(partial(_choice, h=None, fmt=fmt, spec=spec), w, s, alpha) for w, fmt in parts]
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
        run = partial(_searched_choice, search=search, descent_passes=spec.descent_passes)
        return [_in_runs(partial(run, fmt=fmt), w, s, alpha) for w, fmt in parts]
    h = h if method.clips else None
    return [_in_runs(partial(_choice, h=h, fmt=fmt, spec=spec), w, s, alpha) for w, fmt in parts]


_Coded = tuple[Quantized, Array]
"""Codes and scales, and the clip ratio of each block."""


def _in_runs(run: Callable[[Array, Array], _Coded], w: Array, s: Array, alpha: Array) -> Choice:
    """The choice of ``run(w, s)``, computed for some columns of the weight at a time."""
    quantized, ratio = map_columns(lambda columns: run(columns, s), w, anchor=peak_column(w, s))
    return Choice(quantized, s, alpha, ratio)


@jit(static_argnames=("fmt", "spec"))
def _choice(w: Array, s: Array, h: Array | None, fmt: WeightFormat, spec: MethodSpec) -> _Coded:
    """Round to nearest, with clip ratios searched where there is a moment for it."""
    scaled = w.astype(jnp.float32) * s[:, None]
    ratio = jnp.float32(1)
    if h is not None:
        ratio = search_clip(scaled, h, jnp.array(ratio_grid(spec.min_clip_ratio, spec.clip_step)), fmt)
    quantized = fmt.quantize(scaled, ratio)
    return quantized, jnp.broadcast_to(ratio, quantized.s.shape)


def _searched_choice(w: Array, s: Array, search: _SearchMoments, fmt: WeightFormat, descent_passes: int) -> _Coded:
    """Searched block scales, with codes by GPTQ where the moment is factored for it, else the nearest codes.

    Not jitted as a whole: the functions of the moment alone compile once for all weights that multiply the activation.
    """
    scaled = values = _scaled(w, s)
    scales = search_block_scales(scaled, search.damped, fmt)
    if search.factored is not None:
        values = gptq_round_factored(scaled, search.h, search.factored, scales, fmt, descent_passes)
    return _coded(scaled, values, scales, fmt)


@jit
def _scaled(w: Array, s: Array) -> Array:
    return w.astype(jnp.float32) * s[:, None]


@jit(static_argnames="fmt")
def _coded(scaled: Array, values: Array, scales: Scales, fmt: WeightFormat) -> _Coded:
    """Codes of the values, and the ratio of the scales to the plain ones."""
    ratio = _step(scales, scaled.shape[0], fmt) / _step(fmt.plain_scales(scaled), scaled.shape[0], fmt)
    return fmt.encoded(values, scales), ratio


def _step(scales: Scales, c_in: int, fmt: WeightFormat) -> Array:
    """Magnitude of a scale in each block; all rows of a block have it, so the first is enough."""
    return jnp.abs(split(fmt.grid(scales, c_in).step, fmt.block_size)[:, 0])
