"""AWQ's helper classes of ModelOpt's ``int4`` page, and the magnitudes that they start from; `jaxq.int4` holds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxq.errors import JaxqError
from jaxq.methods.awq import alpha_grid, awq_scale, ratio_grid, weight_magnitude
from jaxq.modelopt.arrays import AnyArray, as_array, as_given, check_block_size, check_integer
from jaxq.numerics.blocks import resolve_block_size, split

OPTIONS = ("awqlite_alpha_step", "awqclip_alpha_step", "awqclip_alpha_min", "awqclip_bsz_col")
"""Options that every helper and search takes, so that one dict of them serves all, as ModelOpt passes them."""


def check_options(options: Mapping[str, Any], *more: str) -> None:
    """Refuse options that are not in `OPTIONS` or ``more``, and values out of range."""
    known = (*OPTIONS, *more)
    if unknown := [name for name in options if name not in known]:
        raise JaxqError(f"unknown option {', '.join(unknown)}: the options are {', '.join(known)}")
    for name in OPTIONS[:3]:
        given = options.get(name, 1)
        if isinstance(given, bool) or not isinstance(given, int | float | np.integer | np.floating):
            raise JaxqError(f"{name} is {given!r}: give a number")
    alpha_grid(float(options.get("awqlite_alpha_step", 1)))
    clip_candidates(options.get("awqclip_alpha_min", 1), options.get("awqclip_alpha_step", 1))
    columns = options.get("awqclip_bsz_col", 1)
    if isinstance(columns, bool) or not isinstance(columns, int | np.integer) or columns < 1:
        raise JaxqError(f"awqclip_bsz_col is {columns!r}: give a positive number of columns")


def check_matrix(w: Any) -> AnyArray:
    """The weight as an array [c_in, c_out].

    Raises:
        JaxqError: it is no matrix.
    """
    array = as_array(w)
    if array.ndim != 2:
        raise JaxqError(f"the weight has shape {list(array.shape)}: give a matrix [c_in, c_out]")
    return array


def check_same_channels(act: tuple[int, ...], weight: tuple[int, ...]) -> None:
    """Refuse magnitudes of an activation and of a weight that differ in shape."""
    if act != weight:
        raise JaxqError(
            f"the activation's magnitudes have shape {list(act)} and the weight's {list(weight)}: both need [c_in]"
        )


class AWQLiteHelper:
    """State of AWQ's scale search on one weight, as ModelOpt's code keeps it; see `jaxq.methods.awq.search_scales`.

    Fill ``loss``, then call `update_best_params`.

    Args:
        x: Activations ``[..., c_in]``, or None.
        w: Weight [c_in, c_out], or None.
        block_size: Rows a block, or -1.
        **kwargs: ``awqlite_alpha_step``, the step of the candidates; the other `OPTIONS` are for other searches.

    Attributes:
        alpha_step: Step of alpha, in [0.001, 1].
        block_size: Rows a block.
        weight_scale: `jaxq.methods.awq.weight_magnitude` [c_in], or None without ``w``.
        act_scale: Mean magnitude of each channel [c_in], or None without ``x``.
        loss: Loss of each candidate alpha, zeros at first; the first one, `IDENTITY` (-1), is "no scaling".
        best_alpha: None until `update_best_params`.
        best_scale: Scale [c_in] at ``best_alpha``.

    Raises:
        JaxqError: an option is unknown or out of range, ``block_size`` is 0 or below -1, or ``x`` and ``w`` differ in
            ``c_in``.

    Example:
        >>> helper = AWQLiteHelper(np.ones((3, 2), np.float32), np.eye(2, dtype=np.float32), 2, awqlite_alpha_step=0.5)
        >>> helper.loss = {alpha: abs(alpha - 0.5) for alpha in helper.loss}
        >>> helper.update_best_params()
        >>> helper.best_alpha, helper.best_scale.tolist()
        (0.5, [1.0, 1.0])
    """

    alpha_step = 0.1

    def __init__(self, x: AnyArray | None, w: AnyArray | None, block_size: int, **kwargs: Any) -> None:
        check_options(kwargs)
        self.alpha_step = kwargs.get("awqlite_alpha_step", self.alpha_step)
        self.block_size = check_integer("block_size", block_size)
        if w is not None:
            w = check_matrix(w)
            self.block_size = resolve_block_size(w.shape[0], check_block_size(w.shape[0], block_size))
        self.weight_scale: AnyArray | None = None if w is None else channel_magnitude([w], block_size)
        self.act_scale: AnyArray | None = None if x is None else mean_magnitude(x)
        if self.act_scale is not None and self.weight_scale is not None:
            check_same_channels(self.act_scale.shape, self.weight_scale.shape)
        self.loss = dict.fromkeys(alpha_grid(float(self.alpha_step)), 0.0)
        self.best_alpha: float | None = None
        self.best_scale: AnyArray | None = None

    def update_best_params(self) -> None:
        """Set ``best_alpha``, the candidate of the least loss (the first one wins ties), and ``best_scale``."""
        if self.act_scale is None or self.weight_scale is None:
            raise JaxqError("act_scale or weight_scale is missing: make the helper with x and w")
        self.best_alpha = min(self.loss, key=lambda alpha: np.nan_to_num(float(self.loss[alpha]), nan=np.inf))
        act, weight = _float32(self.act_scale), _float32(self.weight_scale)
        check_same_channels(act.shape, weight.shape)
        scale = awq_scale(act, weight, self.best_alpha)
        self.best_scale = as_given(scale, self.act_scale, self.weight_scale)


class AWQClipHelper:
    """State of AWQ's clip search on one weight, as ModelOpt's code keeps it; see `jaxq.methods.awq.search_clip`.

    Fill ``loss``, then call `update_best_params`.

    Args:
        w: Weight [c_in, c_out].
        block_size: Rows a block, or -1; the last block may be ragged.
        **kwargs: ``awqclip_alpha_step`` and ``awqclip_alpha_min``; the other `OPTIONS` are for other searches.

    Attributes:
        min_alpha: Least clip ratio, in (0, 1].
        alpha_step: Step of the ratios, in [0.001, 1].
        alphas: Candidates: ``min_alpha``, ``min_alpha + alpha_step``, ... and 1.
        block_size: Rows a block.
        w_amax: Greatest magnitude of each block, flat: the blocks of the first column first.
        loss: Losses [c_out, n_blocks] of each candidate, zeros at first.
        best_loss: Least loss of each block, flat like ``w_amax``; infinite at first.
        best_alpha: Best ratio of each block, flat like ``w_amax``; ones at first. `jaxq.int4.quant_tensor` takes it.

    Raises:
        JaxqError: an option is unknown or out of range, or ``block_size`` is 0 or below -1.

    Example:
        >>> helper = AWQClipHelper(np.array([[1.0], [-2.0], [3.0]], np.float32), block_size=2)
        >>> helper.loss[0.5][0, 1] = -1    # better than all others in the second block of the first column
        >>> helper.update_best_params()
        >>> helper.w_amax.tolist(), helper.best_alpha.tolist()
        ([2.0, 3.0], [1.0, 0.5])
    """

    min_alpha = 0.5
    alpha_step = 0.05

    def __init__(self, w: AnyArray, block_size: int, **kwargs: Any) -> None:
        check_options(kwargs)
        self.alpha_step = kwargs.get("awqclip_alpha_step", self.alpha_step)
        self.min_alpha = kwargs.get("awqclip_alpha_min", self.min_alpha)
        self.alphas = clip_candidates(self.min_alpha, self.alpha_step)
        w = check_matrix(w)
        block_size = check_block_size(w.shape[0], block_size)
        self.block_size = resolve_block_size(w.shape[0], block_size)
        amax = jnp.max(jnp.abs(split(jnp.asarray(w), block_size)), axis=1).T  # [c_out, n_blocks]
        self.w_amax = as_given(amax.ravel(), w)
        xp = jnp if isinstance(w, jax.Array) else np
        self.loss = {alpha: xp.zeros(amax.shape, xp.float32) for alpha in self.alphas}
        self.best_loss = xp.full(amax.size, xp.inf, xp.float32)
        self.best_alpha = xp.ones(amax.size, xp.float32)

    def update_best_params(self) -> None:
        """Set ``best_loss`` and ``best_alpha``, the ratio of the least loss; the one that clips less wins ties."""
        ratios = sorted(self.loss, reverse=True)
        losses = jnp.stack([jnp.asarray(self.loss[ratio], jnp.float32).ravel() for ratio in ratios])
        losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
        chosen = jnp.array(ratios, jnp.float32)[jnp.argmin(losses, axis=0)]
        self.best_loss, self.best_alpha = as_given((jnp.min(losses, axis=0), chosen), *self.loss.values())


def clip_candidates(min_alpha: float, alpha_step: float) -> list[float]:
    """ModelOpt's clip ratios: from ``min_alpha`` up in steps, and 1.

    Raises:
        JaxqError: ``min_alpha`` is not in (0, 1], or the step not in [0.001, 1].

    Example:
        >>> clip_candidates(0.5, 0.2)
        [0.5, 0.7, 0.9, 1.0]
    """
    ratio_grid(float(min_alpha), float(alpha_step))  # refuses what is out of range
    return [*(round(float(a), 6) for a in np.arange(min_alpha, 1 - 1e-6, alpha_step)), 1.0]


def mean_magnitude(x: Float[AnyArray, "... c_in"]) -> Float[AnyArray, "c_in"]:
    """Mean of ``|x|`` over all axes but the last, in float32; see `jaxq.int4.get_act_scale`."""
    x = as_array(x, "the activation")
    if x.ndim == 0:
        raise JaxqError("the activation is a single number: give [tokens, c_in]")
    return as_given(_mean_magnitude(jnp.asarray(x)), x)


@jax.jit
def _mean_magnitude(x: Array) -> Array:
    return jnp.mean(jnp.abs(x.reshape(-1, x.shape[-1]).astype(jnp.float32)), axis=0)


def channel_magnitude(weights: Sequence[AnyArray], block_size: int) -> Float[AnyArray, "c_in"]:
    """`jaxq.methods.awq.weight_magnitude` of weights side by side."""
    block_size = check_block_size(weights[0].shape[0], block_size)
    joined = jnp.concatenate([jnp.asarray(w) for w in weights], axis=1) if len(weights) > 1 else jnp.asarray(weights[0])
    return as_given(weight_magnitude(joined, block_size), *weights)


def _float32(x: AnyArray) -> Array:
    return jnp.asarray(x).astype(jnp.float32)
