"""AWQ searches over "wa_packs", ModelOpt's lists of (activation, weight) pairs; `jaxq.int4` holds them by their names.

A pack is ``(activation, weight, do_transpose, gemm_io_type)`` or the same with a node's name: the activation has a
``name``, the weight is an ``onnx.TensorProto``, whose external data lie in the augmented model's folder.
"""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from onnx import TensorProto, numpy_helper

from jaxq.awq import alpha_grid, awq_scale, ratio_grid, search_clip, search_shared_scales, weight_magnitude
from jaxq.blocks import resolve_block_size, split
from jaxq.errors import JaxqError
from jaxq.formats import IntegerFormat
from jaxq.quant_utils import AnyArray, as_given, get_num_bits, layer_block_size
from jaxq.statistics import Moments, accumulate_in_place, finish, zero_sums

OPTIONS = ("awqlite_alpha_step", "awqclip_alpha_step", "awqclip_alpha_min", "awqclip_bsz_col")
"""Options that every helper and search takes, so that one dict of them serves all, as ModelOpt passes them."""


WaPack = tuple[Any, TensorProto, bool, int] | tuple[Any, TensorProto, bool, int, str]
"""Activation, weight, whether the weight is stored as [c_out, c_in], ONNX's number of its type, node."""


class Session(Protocol):
    """What the searches need of an ``onnxruntime.InferenceSession``."""

    def run(self, output_names: Any, input_feed: Any) -> Any:
        """Arrays of the named values."""


class WaPackMaps(NamedTuple):
    """Result of `get_act_to_weight_map_and_act_to_wa_pack_map`.

    Attributes:
        act_to_wa_pack: Indices of an activation's packs, by its name.
        act_to_weight: Dimensions of their weights as the file stores them, by the activation's name.
    """

    act_to_wa_pack: dict[str, list[int]]
    act_to_weight: dict[str, list[tuple[int, ...]]]


def check_options(options: Mapping[str, Any], *more: str) -> None:
    """Refuse options that are not in `OPTIONS` or ``more``, and values out of range."""
    known = (*OPTIONS, *more)
    if unknown := [name for name in options if name not in known]:
        raise JaxqError(f"unknown option {', '.join(unknown)}: the options are {', '.join(known)}")
    alpha_grid(float(options.get("awqlite_alpha_step", 1)))
    clip_candidates(options.get("awqclip_alpha_min", 1), options.get("awqclip_alpha_step", 1))
    if (columns := options.get("awqclip_bsz_col", 1)) < 1:
        raise JaxqError(f"awqclip_bsz_col is {columns}: give a positive number of columns")


class AWQLiteHelper:
    """State of AWQ's scale search on one weight, as ModelOpt's code keeps it; see `jaxq.awq.search_scales`.

    Fill ``loss``, then call `update_best_params`.

    Args:
        x: Activations ``[..., c_in]``, or None.
        w: Weight [c_in, c_out], or None.
        block_size: Rows a block, or -1.
        **kwargs: ``awqlite_alpha_step``, the step of the candidates; the other `OPTIONS` are for other searches.

    Attributes:
        alpha_step: Step of alpha, in [0.001, 1].
        block_size: Rows a block.
        weight_scale: `jaxq.awq.weight_magnitude` [c_in], or None without ``w``.
        act_scale: Mean magnitude of each channel [c_in], or None without ``x``.
        loss: Loss of each candidate alpha, zeros at first; the first one, `jaxq.awq.IDENTITY` (-1), is "no scaling".
        best_alpha: None until `update_best_params`.
        best_scale: Scale [c_in] at ``best_alpha``.

    Raises:
        JaxqError: an option is unknown or out of range, or ``block_size`` is 0 or below -1.

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
        self.block_size = block_size if w is None else resolve_block_size(w.shape[0], block_size)
        self.weight_scale: AnyArray | None = None if w is None else channel_magnitude([w], block_size)
        self.act_scale: AnyArray | None = None if x is None else mean_magnitude(x)
        self.loss = dict.fromkeys(alpha_grid(float(self.alpha_step)), 0.0)
        self.best_alpha: float | None = None
        self.best_scale: AnyArray | None = None

    def update_best_params(self) -> None:
        """Set ``best_alpha``, the candidate of the least loss (the first one wins ties), and ``best_scale``."""
        if self.act_scale is None or self.weight_scale is None:
            raise JaxqError("act_scale or weight_scale is missing: make the helper with x and w")
        self.best_alpha = min(self.loss, key=lambda alpha: np.nan_to_num(float(self.loss[alpha]), nan=np.inf))
        scale = awq_scale(_float32(self.act_scale), _float32(self.weight_scale), self.best_alpha)
        self.best_scale = as_given(scale, self.act_scale, self.weight_scale)


class AWQClipHelper:
    """State of AWQ's clip search on one weight, as ModelOpt's code keeps it; see `jaxq.awq.search_clip`.

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
    if x.ndim == 0:
        raise JaxqError("the activation is a single number: give [tokens, c_in]")
    return as_given(_mean_magnitude(jnp.asarray(x)), x)


@jax.jit
def _mean_magnitude(x: Array) -> Array:
    return jnp.mean(jnp.abs(x.reshape(-1, x.shape[-1]).astype(jnp.float32)), axis=0)


def channel_magnitude(weights: Sequence[AnyArray], block_size: int) -> Float[AnyArray, "c_in"]:
    """`jaxq.awq.weight_magnitude` of weights side by side."""
    joined = jnp.concatenate([jnp.asarray(w) for w in weights], axis=1) if len(weights) > 1 else jnp.asarray(weights[0])
    return as_given(weight_magnitude(joined, block_size), *weights)


def _float32(x: AnyArray) -> Array:
    return jnp.asarray(x).astype(jnp.float32)


def get_act_to_weight_map_and_act_to_wa_pack_map(wa_pack: Sequence[WaPack]) -> WaPackMaps:
    """Which packs read each activation, and what shapes their weights have.

    The page names the maps in the other order; ModelOpt's function returns them as here, so take them by field name.

    Args:
        wa_pack: Packs of one model.

    Returns:
        ``act_to_wa_pack``: name -> indices of packs; ``act_to_weight``: name -> dimensions of their weights.

    Raises:
        JaxqError: weights of one activation differ in ``c_in``, or a weight is no matrix.

    Source: NVIDIA ModelOpt's ``int4`` function of this name.

    Example:
        >>> x, w = TensorProto(name="x"), numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
        >>> get_act_to_weight_map_and_act_to_wa_pack_map([(x, w, False, 1), (x, w, False, 1)]).act_to_wa_pack
        {'x': [0, 1]}
    """
    maps = WaPackMaps({}, {})
    channels: dict[str, int] = {}
    for i, (act, weight, do_transpose, *_) in enumerate(wa_pack):
        dims = tuple(weight.dims)
        if len(dims) != 2:
            raise JaxqError(f"the weight {weight.name!r} has shape {list(dims)}: give matrices")
        c_in = dims[1] if do_transpose else dims[0]
        if channels.setdefault(act.name, c_in) != c_in:
            raise JaxqError(
                f"the weight {weight.name!r} has {c_in} input channels, another one of the activation {act.name!r} "
                f"has {channels[act.name]}: they read the same activation"
            )
        maps.act_to_wa_pack.setdefault(act.name, []).append(i)
        maps.act_to_weight.setdefault(act.name, []).append(dims)
    return maps


def _weight(pack: WaPack, augmented_onnx_path: str | os.PathLike) -> np.ndarray:
    """The weight of a pack as [c_in, c_out]."""
    tensor, do_transpose = pack[1], pack[2]
    w = numpy_helper.to_array(tensor, base_dir=os.path.dirname(augmented_onnx_path))
    return w.T if do_transpose else w


def get_x_w_mean_for_subgraph(
    wa_pack: Sequence[WaPack],
    wa_pack_idx_list: Sequence[int],
    augmented_onnx_path: str | os.PathLike,
    x: Float[AnyArray, "... c_in"],
    block_size: int,
) -> tuple[Float[AnyArray, "c_in"], Float[AnyArray, "c_in"]]:
    """Mean magnitude of an activation, and `jaxq.awq.weight_magnitude` of the weights that read it, side by side.

    Args:
        wa_pack: Packs of one model.
        wa_pack_idx_list: Indices of the packs that read ``x``.
        augmented_onnx_path: The model's path; external data of weights are relative to its folder.
        x: Activations ``[..., c_in]`` of any float type.
        block_size: Consecutive rows a block, or -1.

    Returns:
        Both means [c_in] in float32.

    Raises:
        JaxqError: the weights and ``x`` differ in ``c_in``, or no index is given.

    Source: NVIDIA ModelOpt's ``int4`` function of this name, whose blocks are not of consecutive rows.

    Example:
        >>> w = numpy_helper.from_array(np.array([[1.0], [-2.0]], np.float32), "w")
        >>> x_mean, w_mean = get_x_w_mean_for_subgraph([("x", w, False, 1)], [0], "", np.ones((3, 2), np.float32), 2)
        >>> x_mean.tolist(), w_mean.tolist()
        ([1.0, 1.0], [0.5, 1.0])
    """
    weights = [_weight(wa_pack[i], augmented_onnx_path) for i in wa_pack_idx_list]
    if not weights or any(w.ndim != 2 or w.shape[0] != x.shape[-1] for w in weights):
        raise JaxqError(f"weights of shapes {[list(w.shape) for w in weights]} cannot read x of shape {list(x.shape)}")
    w_mean = channel_magnitude(weights, block_size)
    return mean_magnitude(x), jnp.asarray(w_mean) if isinstance(x, jax.Array) else w_mean


def run_awq_scale_search_per_node(
    wa_pack: Sequence[WaPack],
    augmented_onnx_path: str | os.PathLike,
    block_size: int,
    use_zero_point: bool,
    session: Session | None,
    awq_lite: list[Any],
    inputs: Iterable[Mapping[str, Any]],
    tqdm_msg_append_str: str,
    enable_weight_clipping: bool,
    enable_fast_path_using_high_sysram: bool,
    output_data: Sequence[Sequence[Any]],
    clip_alphas: dict[str, np.ndarray],
    **kwargs: Any,
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """AWQ's scale of each weight by itself, and its clip ratios: `search_scales` and `search_clip` of `jaxq.awq`.

    The model runs once an input, whatever the number of weights; of an activation only its second moments are kept,
    ``4 c_in^2`` bytes, those of all activations at a time.

    Args:
        wa_pack: Packs of one model.
        augmented_onnx_path: The model's path; external data of weights are relative to its folder.
        block_size: Rows a block, or -1.
        use_zero_point: Asymmetric, unsigned codes.
        session: Its ``run`` gives the activations by name; None with ``enable_fast_path_using_high_sysram``.
        awq_lite: One place a pack, filled with `AWQLiteHelper`.
        inputs: Feeds by input name; iterated once.
        tqdm_msg_append_str: Taken for ModelOpt's sake; nothing is printed.
        enable_weight_clipping: Search clip ratios too, on the scaled weight and activation.
        enable_fast_path_using_high_sysram: Take the activations from ``output_data`` instead of the session.
        output_data: Activations of each input: a sequence with one array a pack.
        clip_alphas: Filled: clip ratios by weight name, flat as `AWQClipHelper.best_alpha`.
        **kwargs: `OPTIONS`, and ``precision_info``: bits by weight name, 8 bits per channel. ``awqclip_bsz_col``
            bounds the columns that the clip search takes at a time, which changes no result.

    Returns:
        ``awq_lite`` and ``clip_alphas``. Losses are mean squared output errors per element.

    Raises:
        JaxqError: an option is unknown, no input or session is given, an activation is not finite, shapes do not fit.

    Source: NVIDIA ModelOpt's ``int4`` function of this name.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
        >>> packs = [(TensorProto(name="x"), numpy_helper.from_array(x[:4], "w"), False, 1)]
        >>> found, ratios = run_awq_scale_search_per_node(
        ...     packs, "", 4, False, None, [None], [], "", True, True, [[x]], {}
        ... )
        >>> found[0].best_scale.shape, ratios["w"].shape
        ((4,), (4,))
    """
    del tqdm_msg_append_str
    _check(wa_pack, awq_lite, kwargs)
    acts = get_act_to_weight_map_and_act_to_wa_pack_map(wa_pack).act_to_wa_pack
    if enable_fast_path_using_high_sysram:
        batches = ({name: outputs[indices[0]] for name, indices in acts.items()} for outputs in output_data)
    else:
        batches = _run_all(session, list(acts), inputs)
    moments = _moments(wa_pack, acts, batches)
    for i, pack in enumerate(wa_pack):
        w = _weight(pack, augmented_onnx_path)
        fmt = _format(pack, w, block_size, use_zero_point, kwargs)
        awq_lite[i] = _search([(w, fmt)], moments[pack[0].name], kwargs)
        if enable_weight_clipping:
            s = jnp.asarray(awq_lite[i].best_scale)
            clip_alphas[pack[1].name] = _clip(w, s, moments[pack[0].name].h, fmt, kwargs)
    return awq_lite, clip_alphas


def run_awq_scale_search_per_subgraph(
    wa_pack: Sequence[WaPack],
    augmented_onnx_path: str | os.PathLike,
    block_size: int,
    use_zero_point: bool,
    session: Session | None,
    awq_lite: list[Any],
    inputs: Iterable[Mapping[str, Any]],
    tqdm_msg_append_str: str,
    **kwargs: Any,
) -> list[Any]:
    """One AWQ scale for each activation, searched on all weights that read it: `jaxq.awq.search_shared_scales`.

    The model runs once an input; see `run_awq_scale_search_per_node`.

    Args:
        wa_pack: Packs of one model.
        augmented_onnx_path: The model's path; external data of weights are relative to its folder.
        block_size: Rows a block, or -1.
        use_zero_point: Asymmetric, unsigned codes.
        session: Its ``run`` gives the activations by name.
        awq_lite: One place a pack, filled with `AWQLiteHelper`; those of one activation agree.
        inputs: Feeds by input name; iterated once.
        tqdm_msg_append_str: Taken for ModelOpt's sake; nothing is printed.
        **kwargs: `OPTIONS`, and ``precision_info``: bits by weight name, 8 bits per channel.

    Returns:
        ``awq_lite``. Losses are mean squared output errors per element over the weights of an activation.

    Raises:
        JaxqError: an option is unknown, no input or session is given, an activation is not finite, shapes do not fit.

    Source: NVIDIA ModelOpt's ``int4`` function of this name.

    Example:
        >>> class Constant:
        ...     def run(self, output_names, input_feed):
        ...         return [np.eye(4, dtype=np.float32) for _ in output_names]
        >>> w = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
        >>> packs = [(TensorProto(name="x"), w, False, 1)] * 2
        >>> found = run_awq_scale_search_per_subgraph(packs, "", 4, False, Constant(), [None, None], [{}], "")
        >>> found[0].best_alpha, found[1].best_alpha    # the identity: round to nearest is exact
        (-1.0, -1.0)
    """
    del tqdm_msg_append_str
    _check(wa_pack, awq_lite, kwargs)
    acts = get_act_to_weight_map_and_act_to_wa_pack_map(wa_pack).act_to_wa_pack
    moments = _moments(wa_pack, acts, _run_all(session, list(acts), inputs))
    for name, indices in acts.items():
        weights = [_weight(wa_pack[i], augmented_onnx_path) for i in indices]
        lots: dict[IntegerFormat, list[np.ndarray]] = {}
        fmts = {}
        for i, w in zip(indices, weights, strict=True):
            fmts[i] = _format(wa_pack[i], w, block_size, use_zero_point, kwargs)
            lots.setdefault(fmts[i], []).append(w)
        found = _search([(_beside(ws), fmt) for fmt, ws in lots.items()], moments[name], kwargs)
        for i, fmt in fmts.items():
            awq_lite[i] = copy.copy(found)
            awq_lite[i].loss, awq_lite[i].block_size = dict(found.loss), fmt.block_size
    return awq_lite


def _check(wa_pack: Sequence[WaPack], awq_lite: list[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse bad arguments before the model runs."""
    check_options(kwargs, "precision_info")
    for pack in wa_pack:
        get_num_bits(kwargs.get("precision_info"), pack[1].name)
    if len(awq_lite) != len(wa_pack):
        raise JaxqError(f"awq_lite has {len(awq_lite)} places for {len(wa_pack)} packs: give one a pack")


def _format(
    pack: WaPack, w: np.ndarray, block_size: int, use_zero_point: bool, kwargs: Mapping[str, Any]
) -> IntegerFormat:
    info = kwargs.get("precision_info")
    block = resolve_block_size(w.shape[0], layer_block_size(block_size, info, pack[1].name))
    return IntegerFormat(block, num_bits=get_num_bits(info, pack[1].name), use_zero_point=use_zero_point)


def _run_all(
    session: Session | None, names: list[str], inputs: Iterable[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    """The named activations of each input."""
    if session is None:
        raise JaxqError("session is None: give an inference session of the augmented model")
    for feeds in inputs:
        outputs = session.run(names, {name: np.asarray(array) for name, array in feeds.items()})
        yield dict(zip(names, outputs, strict=True))


def _moments(
    wa_pack: Sequence[WaPack], acts: Mapping[str, list[int]], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Moments]:
    """Second moments of each activation over all batches."""
    sums = {}
    for name, indices in acts.items():
        weight, do_transpose = wa_pack[indices[0]][1:3]
        sums[name] = zero_sums(weight.dims[1] if do_transpose else weight.dims[0])
    for batch in batches:
        for name, array in batch.items():
            if array is None:
                raise JaxqError(f"the activation {name!r} is missing from output_data")
            x, c_in = jnp.asarray(array), sums[name].x_abs.size
            if x.ndim == 0 or x.shape[-1] != c_in:
                raise JaxqError(f"the activation {name!r} has shape {list(x.shape)}: its weight reads {c_in} channels")
            x = x.reshape(-1, c_in)
            sums[name] = accumulate_in_place(sums[name], x, jnp.ones(len(x), jnp.float32))
    moments = {name: finish(found) for name, found in sums.items()}
    for name, found in moments.items():
        if not found.tokens:
            raise JaxqError(f"no calibration input: the activation {name!r} has no token")
        if not jnp.all(jnp.isfinite(found.h)):
            raise JaxqError(f"the activation {name!r} holds infinite numbers or NaN")
    return moments


def _search(
    parts: Sequence[tuple[np.ndarray, IntegerFormat]], moments: Moments, kwargs: Mapping[str, Any]
) -> AWQLiteHelper:
    """A helper with the losses of all candidates, per element of the output, and the best of them."""
    options = {name: value for name, value in kwargs.items() if name in OPTIONS}
    helper = AWQLiteHelper(None, None, parts[0][1].block_size, **options)
    alphas = jnp.array(list(helper.loss), jnp.float32)
    found = search_shared_scales([(jnp.asarray(w), fmt) for w, fmt in parts], moments, alphas)
    width = sum(w.shape[1] for w, _ in parts)
    means = [np.asarray(channel_magnitude([w], fmt.block_size)) * (w.shape[1] / width) for w, fmt in parts]
    helper.act_scale, helper.weight_scale = np.asarray(moments.a), np.sum(means, axis=0)
    helper.loss = dict(zip(helper.loss, (np.asarray(found.losses) / width).tolist(), strict=True))
    helper.update_best_params()
    return helper


def _beside(weights: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(weights, axis=1) if len(weights) > 1 else weights[0]


def _clip(w: np.ndarray, s: Array, h: Array, fmt: IntegerFormat, kwargs: Mapping[str, Any]) -> np.ndarray:
    """Clip ratios of ``s * w``, flat, the blocks of the first column first."""
    step = kwargs.get("awqclip_alpha_step", AWQClipHelper.alpha_step)
    least = kwargs.get("awqclip_alpha_min", AWQClipHelper.min_alpha)
    columns = kwargs.get("awqclip_bsz_col", w.shape[1])
    ratios = jnp.array(clip_candidates(least, step)[::-1], jnp.float32)
    scaled, scaled_h = jnp.asarray(w).astype(jnp.float32) * s[:, None], h / s[:, None] / s[None, :]
    parts = [search_clip(scaled[:, i : i + columns], scaled_h, ratios, fmt) for i in range(0, w.shape[1], columns)]
    return np.concatenate([np.asarray(part) for part in parts], axis=1).T.ravel()
