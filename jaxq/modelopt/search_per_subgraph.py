"""AWQ's search over wa_packs, one scale an activation: `run_awq_scale_search_per_subgraph` of the ``int4`` page."""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxq.formats.integers import IntegerFormat
from jaxq.modelopt.pack_search import (
    Session,
    activation_moments,
    check_search,
    read_settings,
    run_session,
    search_helper,
)
from jaxq.modelopt.wa_packs import WaPack, get_act_to_weight_map_and_act_to_wa_pack_map, pack_weight


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
    """One AWQ scale for each activation, for all weights that it multiplies: `jaxq.methods.awq.search_shared_scales`.

    Runs and memory are those of `run_awq_scale_search_per_node`.

    Args:
        wa_pack: Packs of one model.
        augmented_onnx_path: The model's path; paths of external data are relative to its folder.
        block_size: Rows a block, or -1.
        use_zero_point: Asymmetric, unsigned codes.
        session: An inference session; its ``run`` returns the activations by name.
        awq_lite: A list with one place for each pack; an `AWQLiteHelper` is written to each. Helpers of one activation
            have equal scales and losses.
        inputs: Arrays by input name for each run of the model; iterated once.
        tqdm_msg_append_str: Ignored: nothing is printed.
        **kwargs: `AWQOptions`, and ``precision_info``: bits by weight name, where 8 bits are per channel.

    Returns:
        ``awq_lite``. Losses are mean squared output errors per element over the weights of an activation.

    Raises:
        JaxqError: an option is unknown or out of range, there is no session or no input, an activation is not finite,
            or shapes do not fit.

    Source: NVIDIA ModelOpt's ``int4`` function of this name.

    Example:
        >>> from onnx import TensorProto, numpy_helper
        >>> class Constant:
        ...     def run(self, output_names, input_feed):
        ...         return [np.eye(4, dtype=np.float32) for _ in output_names]
        >>> w = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
        >>> packs = [(TensorProto(name="x"), w, False, 1)] * 2
        >>> helpers = run_awq_scale_search_per_subgraph(packs, "", 4, False, Constant(), [None, None], [{}], "")
        >>> helpers[0].best_alpha, helpers[1].best_alpha    # the identity: round to nearest is exact
        (-1.0, -1.0)
    """
    del tqdm_msg_append_str
    settings = read_settings(block_size, use_zero_point, kwargs)
    check_search(wa_pack, awq_lite, settings)
    packs_by_activation = get_act_to_weight_map_and_act_to_wa_pack_map(wa_pack).act_to_wa_pack
    moments = activation_moments(wa_pack, packs_by_activation, run_session(session, list(packs_by_activation), inputs))
    for activation, indices in packs_by_activation.items():
        weights = {i: pack_weight(wa_pack[i], augmented_onnx_path) for i in indices}
        formats = {i: settings.format(wa_pack[i][1].name, c_in=w.shape[0]) for i, w in weights.items()}
        # Weights of one format are rounded in one call.
        by_format: dict[IntegerFormat, list[np.ndarray]] = {}
        for i, w in weights.items():
            by_format.setdefault(formats[i], []).append(w)
        siblings = [(_concatenate(matrices), fmt) for fmt, matrices in by_format.items()]
        shared = search_helper(siblings, moments[activation], settings.options)
        for i, fmt in formats.items():
            awq_lite[i] = copy.copy(shared)
            awq_lite[i].loss, awq_lite[i].block_size = dict(shared.loss), fmt.block_size
    return awq_lite


def _concatenate(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Weights of one format as one, along ``c_out``; a single weight is not copied."""
    return np.concatenate(weights, axis=1) if len(weights) > 1 else weights[0]
