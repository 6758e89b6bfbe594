"""ModelOpt's "wa_packs", pairs of an activation and a weight that it multiplies, and the functions that read them.

A pack is ``(activation, weight, do_transpose, gemm_io_type)``, or the same with a node's name as a fifth element. The
activation has a ``name``. The weight is an ``onnx.TensorProto``; its external data are in the folder of the model.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from onnx import TensorProto, numpy_helper

from jaxq.errors import JaxqError
from jaxq.modelopt.arrays import AnyArray, as_floats, check_integer
from jaxq.modelopt.magnitudes import channel_magnitude, mean_magnitude

WaPack = tuple[Any, TensorProto, bool, int] | tuple[Any, TensorProto, bool, int, str]
"""Activation; weight; True if the weight is stored as [c_out, c_in]; ONNX's number of its type; name of the node."""


class WaPackMaps(NamedTuple):
    """Result of `get_act_to_weight_map_and_act_to_wa_pack_map`.

    Attributes:
        act_to_wa_pack: Indices of the packs of each activation, by the activation's name.
        act_to_weight: Dimensions of the weights of those packs, as the file stores them, by the activation's name.
    """

    act_to_wa_pack: dict[str, list[int]]
    act_to_weight: dict[str, list[tuple[int, ...]]]


def get_act_to_weight_map_and_act_to_wa_pack_map(wa_pack: Sequence[WaPack]) -> WaPackMaps:
    """Packs of each activation, and the dimensions of their weights.

    The page describes the two maps in the opposite order; ModelOpt's function returns them in this one. The fields'
    names avoid the doubt.

    Args:
        wa_pack: Packs of one model.

    Returns:
        ``act_to_wa_pack``: activation name -> indices of packs; ``act_to_weight``: activation name -> dimensions of
        weights.

    Raises:
        JaxqError: a pack is malformed, weights of one activation differ in ``c_in``, or a weight is no matrix.

    Source: NVIDIA ModelOpt's ``int4`` function of this name.

    Example:
        >>> x, w = TensorProto(name="x"), numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
        >>> get_act_to_weight_map_and_act_to_wa_pack_map([(x, w, False, 1), (x, w, False, 1)]).act_to_wa_pack
        {'x': [0, 1]}
    """
    maps = WaPackMaps({}, {})
    channels: dict[str, int] = {}
    for i, pack in enumerate(wa_pack):
        check_pack(i, pack)
        act, weight, do_transpose = pack[:3]
        if not hasattr(act, "name"):
            raise JaxqError(f"pack {i} has an activation of type {type(act).__name__}: give one with a name")
        dims = tuple(weight.dims)
        if len(dims) != 2:
            raise JaxqError(f"the weight {weight.name!r} has shape {list(dims)}: give matrices")
        c_in = dims[1] if do_transpose else dims[0]
        if channels.setdefault(act.name, c_in) != c_in:
            raise JaxqError(
                f"the weight {weight.name!r} has {c_in} input channels, and another weight of the activation "
                f"{act.name!r} has {channels[act.name]}: weights of one activation need as many"
            )
        maps.act_to_wa_pack.setdefault(act.name, []).append(i)
        maps.act_to_weight.setdefault(act.name, []).append(dims)
    return maps


def check_pack(index: int, pack: Any) -> None:
    """Raise an error where a value is no pack; ``index`` names it in the error."""
    if not isinstance(pack, tuple | list) or len(pack) not in (4, 5) or not isinstance(pack[1], TensorProto):
        raise JaxqError(
            f"pack {index} is not (activation, weight, do_transpose, gemm_io_type) with an onnx.TensorProto as weight, "
            "or the same with a node's name"
        )


def pack_weight(pack: WaPack, augmented_onnx_path: str | os.PathLike) -> np.ndarray:
    """The weight of a pack as [c_in, c_out], in floats."""
    tensor, do_transpose = pack[1], pack[2]
    w = np.asarray(as_floats(numpy_helper.to_array(tensor, base_dir=os.path.dirname(augmented_onnx_path))))
    return w.T if do_transpose else w


def get_x_w_mean_for_subgraph(
    wa_pack: Sequence[WaPack],
    wa_pack_idx_list: Sequence[int],
    augmented_onnx_path: str | os.PathLike,
    x: Float[AnyArray, "... c_in"],
    block_size: int,
) -> tuple[Float[AnyArray, "c_in"], Float[AnyArray, "c_in"]]:
    """Mean magnitude of an activation by channel, and of the weights that share it, as AWQ's scale needs them.

    The second is `jaxq.methods.awq.weight_magnitude` of the weights concatenated along ``c_out``.

    Args:
        wa_pack: Packs of one model.
        wa_pack_idx_list: Indices of the packs whose weights multiply ``x``.
        augmented_onnx_path: The model's path; paths of external data are relative to its folder.
        x: Activations ``[..., c_in]`` of floats or integers.
        block_size: Consecutive rows a block, or -1.

    Returns:
        Both means [c_in] in float32.

    Raises:
        JaxqError: the weights and ``x`` differ in ``c_in``, or there is no index, or an index without a pack.

    Source: NVIDIA ModelOpt's ``int4`` function of this name, whose blocks are not of consecutive rows.

    Example:
        >>> w = numpy_helper.from_array(np.array([[1.0], [-2.0]], np.float32), "w")
        >>> x_mean, w_mean = get_x_w_mean_for_subgraph([("x", w, False, 1)], [0], "", np.ones((3, 2), np.float32), 2)
        >>> x_mean.tolist(), w_mean.tolist()
        ([1.0, 1.0], [0.5, 1.0])
    """
    x = as_floats(x, "the activation")
    for i in wa_pack_idx_list:
        if not 0 <= check_integer("an index of wa_pack_idx_list", i) < len(wa_pack):
            raise JaxqError(f"wa_pack_idx_list has {i}: the packs have the indices 0 to {len(wa_pack) - 1}")
        check_pack(i, wa_pack[i])
    weights = [pack_weight(wa_pack[i], augmented_onnx_path) for i in wa_pack_idx_list]
    if not weights or any(w.ndim != 2 or w.shape[0] != x.shape[-1] for w in weights):
        raise JaxqError(f"weights of shapes {[list(w.shape) for w in weights]} cannot read x of shape {list(x.shape)}")
    w_mean = channel_magnitude(weights, block_size)
    return mean_magnitude(x), jnp.asarray(w_mean) if isinstance(x, jax.Array) else w_mean
