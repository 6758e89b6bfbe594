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

from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.methods.awq import search_clip, search_shared_scales
from jaxq.modelopt.arrays import AnyArray, as_array, check_integer
from jaxq.modelopt.helpers import (
    OPTIONS,
    AWQClipHelper,
    AWQLiteHelper,
    channel_magnitude,
    check_options,
    clip_candidates,
    mean_magnitude,
)
from jaxq.modelopt.precision import get_num_bits, layer_block_size
from jaxq.numerics.blocks import resolve_block_size
from jaxq.numerics.moments import Moments, accumulate_in_place, finish, zero_sums

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
    for i, pack in enumerate(wa_pack):
        _check_pack(i, pack)
        act, weight, do_transpose = pack[:3]
        if not hasattr(act, "name"):
            raise JaxqError(f"pack {i} has an activation of type {type(act).__name__}: give one with a name")
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


def _check_pack(index: int, pack: Any) -> None:
    if not isinstance(pack, tuple | list) or len(pack) not in (4, 5) or not isinstance(pack[1], TensorProto):
        raise JaxqError(
            f"pack {index} is not (activation, weight, do_transpose, gemm_io_type) with an onnx.TensorProto as weight, "
            "or the same with a node's name"
        )


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
    """Mean magnitude of an activation, and `weight_magnitude` of the weights that read it, side by side.

    Args:
        wa_pack: Packs of one model.
        wa_pack_idx_list: Indices of the packs that read ``x``.
        augmented_onnx_path: The model's path; external data of weights are relative to its folder.
        x: Activations ``[..., c_in]`` of any float type.
        block_size: Consecutive rows a block, or -1.

    Returns:
        Both means [c_in] in float32.

    Raises:
        JaxqError: the weights and ``x`` differ in ``c_in``, no index is given, or one that no pack has.

    Source: NVIDIA ModelOpt's ``int4`` function of this name, whose blocks are not of consecutive rows.

    Example:
        >>> w = numpy_helper.from_array(np.array([[1.0], [-2.0]], np.float32), "w")
        >>> x_mean, w_mean = get_x_w_mean_for_subgraph([("x", w, False, 1)], [0], "", np.ones((3, 2), np.float32), 2)
        >>> x_mean.tolist(), w_mean.tolist()
        ([1.0, 1.0], [0.5, 1.0])
    """
    x = as_array(x, "the activation")
    for i in wa_pack_idx_list:
        if not 0 <= check_integer("an index of wa_pack_idx_list", i) < len(wa_pack):
            raise JaxqError(f"wa_pack_idx_list has {i}: the packs have the indices 0 to {len(wa_pack) - 1}")
        _check_pack(i, wa_pack[i])
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
    """AWQ's scale of each weight by itself, and its clip ratios: `search_scales` and `search_clip` of `awq`.

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
    """One AWQ scale for each activation, searched on all weights that read it: `jaxq.methods.awq.search_shared_scales`.

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
    for i, pack in enumerate(wa_pack):
        _check_pack(i, pack)
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
