"""AWQ's search over wa_packs, each weight by itself: `run_awq_scale_search_per_node` of ModelOpt's ``int4`` page."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxq.formats.integers import IntegerFormat
from jaxq.methods.awq import search_clip
from jaxq.modelopt.awq_options import AWQOptions, clip_candidates
from jaxq.modelopt.pack_search import (
    Session,
    activation_moments,
    check_search,
    read_settings,
    run_session,
    search_helper,
)
from jaxq.modelopt.wa_packs import WaPack, get_act_to_weight_map_and_act_to_wa_pack_map, pack_weight


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
    """AWQ's scale and clip ratios of each weight by itself: `search_scales` and `search_clip` of `jaxq.methods.awq`.

    The model runs once for each input, whatever the number of weights. Memory holds the second moments of all
    activations, ``4 c_in^2`` bytes each, and no tokens.

    Args:
        wa_pack: Packs of one model.
        augmented_onnx_path: The model's path; paths of external data are relative to its folder.
        block_size: Rows a block, or -1.
        use_zero_point: Asymmetric, unsigned codes.
        session: An inference session; its ``run`` returns the activations by name. None with
            ``enable_fast_path_using_high_sysram``.
        awq_lite: A list with one place for each pack; an `AWQLiteHelper` is written to each.
        inputs: Arrays by input name for each run of the model; iterated once.
        tqdm_msg_append_str: Ignored: nothing is printed.
        enable_weight_clipping: Search clip ratios too, on the scaled weight and activation.
        enable_fast_path_using_high_sysram: Take the activations from ``output_data`` instead of the session.
        output_data: Activations of each input: a sequence with one array for each pack.
        clip_alphas: Clip ratios by weight name are written to it, flat as `AWQClipHelper.best_alpha`.
        **kwargs: `AWQOptions`, and ``precision_info``: bits by weight name, where 8 bits are per channel.

    Returns:
        ``awq_lite`` and ``clip_alphas``. Losses are mean squared output errors per element.

    Raises:
        JaxqError: an option is unknown or out of range, there is no session or no input, an activation is not finite,
            or shapes do not fit.

    Source: NVIDIA ModelOpt's ``int4`` function of this name.

    Example:
        >>> from onnx import TensorProto, numpy_helper
        >>> x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
        >>> packs = [(TensorProto(name="x"), numpy_helper.from_array(x[:4], "w"), False, 1)]
        >>> helpers, ratios = run_awq_scale_search_per_node(
        ...     packs, "", 4, False, None, [None], [], "", True, True, [[x]], {}
        ... )
        >>> helpers[0].best_scale.shape, ratios["w"].shape
        ((4,), (4,))
    """
    del tqdm_msg_append_str
    settings = read_settings(block_size, use_zero_point, kwargs)
    check_search(wa_pack, awq_lite, settings)
    packs_by_activation = get_act_to_weight_map_and_act_to_wa_pack_map(wa_pack).act_to_wa_pack
    if enable_fast_path_using_high_sysram:
        first_packs = {name: indices[0] for name, indices in packs_by_activation.items()}
        batches = ({name: arrays[i] for name, i in first_packs.items()} for arrays in output_data)
    else:
        batches = run_session(session, list(packs_by_activation), inputs)
    moments = activation_moments(wa_pack, packs_by_activation, batches)
    for i, pack in enumerate(wa_pack):
        activation, tensor = pack[:2]
        w = pack_weight(pack, augmented_onnx_path)
        fmt = settings.format(tensor.name, c_in=w.shape[0])
        awq_lite[i] = search_helper([(w, fmt)], moments[activation.name], settings.options)
        if enable_weight_clipping:
            s = jnp.asarray(awq_lite[i].best_scale)
            clip_alphas[tensor.name] = _clip_ratios(w, s, moments[activation.name].h, fmt, settings.options)
    return awq_lite, clip_alphas


def _clip_ratios(
    w: np.ndarray, s: Float[Array, "c_in"], h: Float[Array, "c_in c_in"], fmt: IntegerFormat, options: AWQOptions
) -> np.ndarray:
    """Clip ratios of ``s * w``, flat: the blocks of the first column first."""
    candidates = clip_candidates(options.awqclip_alpha_min, options.awqclip_alpha_step)
    ratios = jnp.array(candidates[::-1], jnp.float32)  # 1 first: the first candidate wins ties
    scaled, scaled_h = jnp.asarray(w).astype(jnp.float32) * s[:, None], h / s[:, None] / s[None, :]
    columns = options.awqclip_bsz_col or w.shape[1]
    chunks = [search_clip(scaled[:, i : i + columns], scaled_h, ratios, fmt) for i in range(0, w.shape[1], columns)]
    return np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1).T.ravel()
