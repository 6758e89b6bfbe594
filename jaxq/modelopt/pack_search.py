"""The steps that both AWQ searches over wa_packs share: settings, moments of the activations, losses of the scales."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.methods.awq import search_shared_scales
from jaxq.modelopt.arrays import as_floats
from jaxq.modelopt.awq_helpers import AWQLiteHelper
from jaxq.modelopt.awq_options import AWQOptions, read_awq_options
from jaxq.modelopt.magnitudes import channel_magnitude
from jaxq.modelopt.precision import Layer, get_num_bits, layer_block_size
from jaxq.modelopt.wa_packs import WaPack, check_pack
from jaxq.numerics.blocks import resolve_block_size
from jaxq.numerics.moments import Moments, accumulate_in_place, finish, zero_sums


class Session(Protocol):
    """The method of ``onnxruntime.InferenceSession`` that the searches call."""

    def run(self, output_names: Any, input_feed: Any) -> Any:
        """Runs the model, and returns the arrays of the named values."""


@dataclass(frozen=True)
class SearchSettings:
    """Arguments of a search that say how its weights are quantized.

    Attributes:
        block_size: Rows a block, or -1.
        use_zero_point: Asymmetric, unsigned codes.
        options: Candidates of the searches.
        precision_info: Bits by weight name; None for 4 bits everywhere.
    """

    block_size: int
    use_zero_point: bool
    options: AWQOptions
    precision_info: Mapping[str, Layer] | None

    def format(self, name: str, c_in: int) -> IntegerFormat:
        """Format of the weight of that name, which has ``c_in`` input channels."""
        block_size = resolve_block_size(c_in, layer_block_size(self.block_size, self.precision_info, name))
        bits = get_num_bits(self.precision_info, name)
        return IntegerFormat(block_size, num_bits=bits, use_zero_point=self.use_zero_point)


def read_settings(block_size: int, use_zero_point: bool, keywords: Mapping[str, Any]) -> SearchSettings:
    """The settings among a search's arguments.

    Raises:
        JaxqError: a keyword is unknown, or an option out of range.
    """
    options = read_awq_options(keywords, "precision_info")
    return SearchSettings(block_size, use_zero_point, options, keywords.get("precision_info"))


def check_search(wa_pack: Sequence[WaPack], awq_lite: Sequence[Any], settings: SearchSettings) -> None:
    """Raise an error for wrong arguments, before the model runs."""
    for i, pack in enumerate(wa_pack):
        check_pack(i, pack)
        get_num_bits(settings.precision_info, pack[1].name)
    if len(awq_lite) != len(wa_pack):
        raise JaxqError(f"awq_lite has {len(awq_lite)} places for {len(wa_pack)} packs: give one place for each pack")


def run_session(
    session: Session | None, names: list[str], inputs: Iterable[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    """The named activations of each input.

    Raises:
        JaxqError: there is no session.
    """
    if session is None:
        raise JaxqError("session is None: give an inference session of the augmented model")
    for feeds in inputs:
        outputs = session.run(names, {name: np.asarray(array) for name, array in feeds.items()})
        yield dict(zip(names, outputs, strict=True))


def activation_moments(
    wa_pack: Sequence[WaPack], packs_by_activation: Mapping[str, list[int]], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Moments]:
    """Second moments of each activation over all batches.

    Args:
        wa_pack: Packs of one model.
        packs_by_activation: Indices of packs by the activation's name.
        batches: Arrays ``[..., c_in]`` by the activation's name; iterated once.

    Raises:
        JaxqError: an activation is missing, has no token or another ``c_in`` than its weights, or is not finite.
    """
    sums = {}
    for name, indices in packs_by_activation.items():
        tensor, do_transpose = wa_pack[indices[0]][1:3]
        sums[name] = zero_sums(tensor.dims[1] if do_transpose else tensor.dims[0])
    for batch in batches:
        for name, array in batch.items():
            if array is None:
                raise JaxqError(f"the activation {name!r} is missing from output_data")
            x, c_in = jnp.asarray(as_floats(array, f"the activation {name!r}")), sums[name].x_abs.size
            if x.ndim == 0 or x.shape[-1] != c_in:
                raise JaxqError(f"the activation {name!r} has shape {list(x.shape)}: its weight has {c_in} channels")
            x = x.reshape(-1, c_in)
            sums[name] = accumulate_in_place(sums[name], x, jnp.ones(len(x), jnp.float32))
    moments = {name: finish(total) for name, total in sums.items()}
    for name, moment in moments.items():
        if not moment.tokens:
            raise JaxqError(f"no calibration input: the activation {name!r} has no token")
        if not jnp.all(jnp.isfinite(moment.h)):
            raise JaxqError(f"the activation {name!r} has infinite numbers or NaN: check the inputs")
    return moments


def search_helper(
    siblings: Sequence[tuple[np.ndarray, IntegerFormat]], moments: Moments, options: AWQOptions
) -> AWQLiteHelper:
    """A helper with the losses of all candidates, as means over output elements, and the best candidate.

    Args:
        siblings: Weights [c_in, c_out] that share the activation, one for each format, with the format.
        moments: Moments of the activation.
        options: Candidates.
    """
    helper = AWQLiteHelper(None, None, siblings[0][1].block_size, awqlite_alpha_step=options.awqlite_alpha_step)
    alphas = jnp.array(list(helper.loss), jnp.float32)
    choice = search_shared_scales([(jnp.asarray(w), fmt) for w, fmt in siblings], moments, alphas)
    c_out = sum(w.shape[1] for w, _ in siblings)
    means = [np.asarray(channel_magnitude([w], fmt.block_size)) * (w.shape[1] / c_out) for w, fmt in siblings]
    helper.act_scale, helper.weight_scale = np.asarray(moments.a), np.sum(means, axis=0)
    helper.loss = dict(zip(helper.loss, (np.asarray(choice.losses) / c_out).tolist(), strict=True))
    helper.update_best_params()
    return helper
