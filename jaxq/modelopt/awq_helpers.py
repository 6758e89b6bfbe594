"""The classes `AWQLiteHelper` and `AWQClipHelper` of ModelOpt's ``int4`` page."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import JaxqError
from jaxq.methods.awq import awq_scale
from jaxq.methods.grids import alpha_grid
from jaxq.modelopt.arrays import AnyArray, as_given, check_block_size, check_integer
from jaxq.modelopt.awq_options import clip_candidates, read_awq_options
from jaxq.modelopt.magnitudes import channel_magnitude, check_matrix, check_same_channels, mean_magnitude
from jaxq.numerics.blocks import resolve_block_size, split


class AWQLiteHelper:
    """State of AWQ's scale search on one weight: a loss for each alpha, and the alpha with the least loss.

    The caller writes the losses to ``loss`` and calls `update_best_params`. `jaxq.methods.awq.search_scales` does the
    whole search at once.

    Args:
        x: Activations ``[..., c_in]``, or None.
        w: Weight [c_in, c_out], or None.
        block_size: Rows a block, or -1.
        **kwargs: ``awqlite_alpha_step``, the step of the candidates; the other `AWQOptions` are accepted and ignored.

    Attributes:
        alpha_step: Step of alpha, in [0.001, 1].
        block_size: Rows a block.
        weight_scale: `jaxq.methods.awq.weight_magnitude` [c_in], or None without ``w``.
        act_scale: Mean magnitude of each channel [c_in], or None without ``x``.
        loss: Loss of each candidate alpha, zeros at first. The first candidate, `IDENTITY` (-1), is "no scaling".
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
        read_awq_options(kwargs)  # raises for unknown names and values out of range
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
        """Set ``best_alpha`` to the candidate with the least loss, and ``best_scale``; the first candidate wins ties.

        Raises:
            JaxqError: the helper was made without ``x`` or ``w``.
        """
        if self.act_scale is None or self.weight_scale is None:
            raise JaxqError("act_scale or weight_scale is missing: make the helper with x and w")
        self.best_alpha = min(self.loss, key=lambda alpha: np.nan_to_num(float(self.loss[alpha]), nan=np.inf))
        act, weight = (jnp.asarray(a).astype(jnp.float32) for a in (self.act_scale, self.weight_scale))
        check_same_channels(act.shape, weight.shape)
        scale = awq_scale(act, weight, self.best_alpha)
        self.best_scale = as_given(scale, self.act_scale, self.weight_scale)


class AWQClipHelper:
    """State of AWQ's clip search on one weight: losses for each clip ratio, and the best ratio of each block.

    The caller writes the losses to ``loss`` and calls `update_best_params`. `jaxq.methods.awq.search_clip` does the
    whole search at once.

    Args:
        w: Weight [c_in, c_out].
        block_size: Rows a block, or -1; the last block may be ragged.
        **kwargs: ``awqclip_alpha_step`` and ``awqclip_alpha_min``; the other `AWQOptions` are accepted and ignored.

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
        JaxqError: an option is unknown or out of range, ``block_size`` is 0 or below -1, or ``w`` is no matrix.

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
        read_awq_options(kwargs)  # raises for unknown names and values out of range
        self.alpha_step = kwargs.get("awqclip_alpha_step", self.alpha_step)
        self.min_alpha = kwargs.get("awqclip_alpha_min", self.min_alpha)
        self.alphas = clip_candidates(self.min_alpha, self.alpha_step)
        w = check_matrix(w)
        block_size = check_block_size(w.shape[0], block_size)
        self.block_size = resolve_block_size(w.shape[0], block_size)
        amax = jnp.max(jnp.abs(split(jnp.asarray(w), block_size)), axis=1).T  # [c_out, n_blocks]
        self.w_amax = as_given(amax.ravel(), w)
        library = jnp if isinstance(w, jax.Array) else np
        self.loss = {alpha: library.zeros(amax.shape, library.float32) for alpha in self.alphas}
        self.best_loss = library.full(amax.size, library.inf, library.float32)
        self.best_alpha = library.ones(amax.size, library.float32)

    def update_best_params(self) -> None:
        """Set ``best_loss`` and ``best_alpha``, the ratio with the least loss; the greater ratio wins ties."""
        ratios = sorted(self.loss, reverse=True)  # argmin takes the first of equal losses
        losses = jnp.stack([jnp.asarray(self.loss[ratio], jnp.float32).ravel() for ratio in ratios])
        losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
        best_ratios = jnp.array(ratios, jnp.float32)[jnp.argmin(losses, axis=0)]
        self.best_loss, self.best_alpha = as_given((jnp.min(losses, axis=0), best_ratios), *self.loss.values())
