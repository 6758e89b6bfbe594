"""The names of NVIDIA ModelOpt's ``int4`` page, on numpy and JAX arrays (see `jaxq.quant_utils` for which gives which).

The page's functions that `jaxq.quant_utils` has too have its fuller parameters here, and take the page's shorter calls:
``find_scales(w, 128, 0.5, True)`` has a float third, so that is alpha; ``dq_tensor(q, s, 128, zp)`` an array fourth, so
that is the zero point. Importing this module loads neither onnxruntime nor Hydra.
"""

from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from jaxq import awq, quant_utils
from jaxq.errors import JaxqError
from jaxq.modelopt.helpers import (
    AWQClipHelper,
    AWQLiteHelper,
    channel_magnitude,
    check_matrix,
    check_same_channels,
    mean_magnitude,
)
from jaxq.modelopt.models import quantize, quantize_rtn
from jaxq.modelopt.packs import (
    get_act_to_weight_map_and_act_to_wa_pack_map,
    get_x_w_mean_for_subgraph,
    run_awq_scale_search_per_node,
    run_awq_scale_search_per_subgraph,
)
from jaxq.quant_utils import AnyArray, as_array, as_given

__all__ = [
    "AWQClipHelper",
    "AWQLiteHelper",
    "dq_tensor",
    "find_scales",
    "get_act_scale",
    "get_act_to_weight_map_and_act_to_wa_pack_map",
    "get_scale",
    "get_weight_scale",
    "get_x_w_mean_for_subgraph",
    "quant_tensor",
    "quantize",
    "quantize_rtn",
    "rtn",
    "run_awq_scale_search_per_node",
    "run_awq_scale_search_per_subgraph",
]

TP_AXIS = "tp"
"""Name of the mapped axis over which `get_scale` reduces."""


def find_scales(
    w: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int | ArrayLike = 0,
    alpha: ArrayLike = 1.0,
    use_zero_point: bool = False,
    num_bits: int = 4,
) -> tuple[Float[AnyArray, "..."], Num[AnyArray, "..."] | None]:
    """Scale, and zero point, of each block: `jaxq.quant_utils.find_scales`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank; float32, float16 or bfloat16, finite.
        block_size: Rows a block, or -1 for the whole axis.
        quantize_axis: The axis that is split into blocks; a lone integer is an axis. Where it is no integer, or a bool
            follows it, it is ``alpha``, and what follows it ``use_zero_point``.
        alpha: Clip ratio above 0: a number, an array that broadcasts, or `AWQClipHelper.best_alpha`.
        use_zero_point: Asymmetric, unsigned codes.
        num_bits: 2 to 8.

    Returns:
        ``s`` in ``w``'s dtype, and ``zp`` (uint8) or None; ``n_blocks`` in place of the axis.

    Raises:
        JaxqError: an argument is out of range or given twice, ``alpha`` fits no block, or ``w`` is not of a float type.

    Example:
        >>> s, zp = find_scales(jnp.array([[7.0], [-3.5]]), 2, 0.5)
        >>> s.tolist(), zp
        ([[0.5]], None)
    """
    axis, alpha, zero = _clip_arguments(quantize_axis, alpha, use_zero_point)
    return quant_utils.find_scales(w, block_size, axis, alpha, zero, num_bits)


def rtn(
    w: Float[AnyArray, "..."],
    s: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int | ArrayLike | None = 0,
    zp: Num[AnyArray, "..."] | None = None,
    num_bits: int = 4,
) -> Num[AnyArray, "..."]:
    """Codes of ``w`` by round to nearest, ties to even: `jaxq.quant_utils.rtn`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank, finite.
        s: Scales as `find_scales` gives them; not 0.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks; a lone integer is an axis, and None is 0. What is
            neither is ``zp``.
        zp: Zero points of any integer or float type, or None.
        num_bits: 2 to 8.

    Returns:
        Codes of ``w``'s shape, int8, or uint8 with a zero point.

    Raises:
        JaxqError: the number of scale rows is not ``ceil(dim / block_size)``, or ``zp`` is given twice.

    Example:
        >>> rtn(jnp.array([[2.5], [-9.0]]), jnp.array([[1.0]]), 2, jnp.array([[8]], jnp.uint8)).tolist()
        [[10], [0]]
    """
    axis, zp = _zero_point_arguments(quantize_axis, zp)
    return quant_utils.rtn(w, s, block_size, axis, zp, num_bits)


def dq_tensor(
    w: Num[AnyArray, "..."],
    s: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int | ArrayLike | None = 0,
    zp: Num[AnyArray, "..."] | None = None,
) -> Float[AnyArray, "..."]:
    """Weights from codes, ``(w - zp) * s``: `jaxq.quant_utils.dq_tensor`.

    Args:
        w: Codes of any integer or float type.
        s: Scales, one a block.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks; a lone integer is an axis, and None is 0. What is
            neither is ``zp``.
        zp: Zero points of any integer or float type, or None.

    Returns:
        Weights of ``w``'s shape in ``s``'s dtype.

    Raises:
        JaxqError: the number of scale rows is not ``ceil(dim / block_size)``, or ``zp`` is given twice.

    Example:
        >>> dq_tensor(jnp.array([[10], [0]]), jnp.array([[0.5]]), 2, jnp.array([[8]], jnp.uint8)).tolist()
        [[1.0], [-4.0]]
    """
    axis, zp = _zero_point_arguments(quantize_axis, zp)
    return quant_utils.dq_tensor(w, s, block_size, axis, zp)


def quant_tensor(
    w: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int | ArrayLike = 0,
    alpha: ArrayLike = 1.0,
    use_zero_point: bool = False,
    num_bits: int = 4,
) -> tuple[Num[AnyArray, "..."], Float[AnyArray, "..."], Num[AnyArray, "..."] | None]:
    """Codes, scales and zero points: `jaxq.quant_utils.quant_tensor`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank; float32, float16 or bfloat16, finite.
        block_size: Rows a block, or -1 for the whole axis.
        quantize_axis: The axis that is split into blocks; a lone integer is an axis. Where it is no integer, or a bool
            follows it, it is ``alpha``, and what follows it ``use_zero_point``.
        alpha: Clip ratio; see `find_scales`.
        use_zero_point: Asymmetric, unsigned codes.
        num_bits: 2 to 8.

    Returns:
        Codes (int8, or uint8 with a zero point), scales in ``w``'s dtype, and zero points (uint8) or None.

    Raises:
        JaxqError: as `find_scales`.

    Example:
        >>> q, s, zp = quant_tensor(jnp.array([[7.0], [-3.5]]), 2, 0.5)
        >>> q.tolist(), s.tolist(), zp
        ([[7], [-7]], [[0.5]], None)
    """
    axis, alpha, zero = _clip_arguments(quantize_axis, alpha, use_zero_point)
    return quant_utils.quant_tensor(w, block_size, axis, alpha, zero, num_bits)


def _is_axis(argument: object) -> TypeGuard[int]:
    return isinstance(argument, int | np.integer) and not isinstance(argument, bool)


def _clip_arguments(third: Any, fourth: Any, use_zero_point: bool) -> tuple[int, Any, bool]:
    """Axis, alpha and use_zero_point of the fuller call, or of the page's shorter one, which has no axis."""
    if isinstance(fourth, bool | np.bool_):
        if use_zero_point:
            raise JaxqError("use_zero_point is given twice: name the arguments that follow block_size")
        return 0, third, bool(fourth)
    if _is_axis(third):
        return int(third), fourth, use_zero_point
    if not (isinstance(fourth, float) and fourth == 1):  # the default
        raise JaxqError(
            f"{fourth!r} follows the alpha {third!r}: give a bool there, use_zero_point, or quantize_axis and alpha"
        )
    return 0, third, use_zero_point


def _zero_point_arguments(fourth: Any, zp: Any) -> tuple[int, Any]:
    """Axis and zero point of the fuller call, or of the page's shorter one, which has no axis."""
    if fourth is None or _is_axis(fourth):
        return (0 if fourth is None else int(fourth)), zp
    if zp is not None:
        raise JaxqError("the zero points are given twice: the argument behind block_size is an axis, or zp")
    return 0, fourth


def get_act_scale(x: Float[AnyArray, "... c_in"]) -> Float[AnyArray, "c_in"]:
    """Mean magnitude of each input channel: ``mean |x|`` over all tokens.

    Args:
        x: Activations ``[tokens, c_in]``, or ``[..., c_in]``, of any float type.

    Returns:
        Means [c_in] in float32.

    Raises:
        JaxqError: ``x`` is a single number.

    Source: Lin et al., "AWQ" (arXiv:2306.00978); NVIDIA ModelOpt's ``int4.get_act_scale``.

    Example:
        >>> get_act_scale(jnp.array([[1.0, -2.0], [-3.0, 0.0]])).tolist()
        [2.0, 1.0]
    """
    return mean_magnitude(x)


def get_weight_scale(weight: Float[AnyArray, "c_in c_out"], block_size: int | None = None) -> Float[AnyArray, "c_in"]:
    """How large each input channel's weights are within their blocks: mean over columns of ``|w| / max|block|``.

    Args:
        weight: Weight [c_in, c_out] of any float type.
        block_size: Consecutive rows a block, the last block may be ragged; None or -1 for whole columns.

    Returns:
        Means [c_in] in float32, in [0, 1]; a block of zeros counts as 0.

    Raises:
        JaxqError: ``weight`` is no matrix, or ``block_size`` is 0 or below -1.

    Source: NVIDIA ModelOpt's ``int4.get_weight_scale``, whose blocks are not of consecutive rows.

    Example:
        >>> get_weight_scale(jnp.array([[1.0, 2.0], [2.0, 1.0]])).tolist()
        [0.75, 0.75]
    """
    return channel_magnitude([check_matrix(weight)], -1 if block_size is None else block_size)


def get_scale(
    x_max: Float[AnyArray, "c_in"],
    w_max: Float[AnyArray, "c_in"],
    alpha: ArrayLike,
    reduce_across_tp: bool = False,
) -> Float[AnyArray, "c_in"]:
    """AWQ's scale: ``s = clip(x^alpha / w^(1 - alpha), 1e-4, 1e4)``, divided by ``sqrt(max s * min s)``.

    With ``reduce_across_tp`` both magnitudes are first averaged over the mapped axis "tp" of `jax.vmap` or
    `jax.shard_map`: shards with as many output columns each then give the scale of the whole weight.

    Args:
        x_max: `get_act_scale`, at least 0.
        w_max: `get_weight_scale`, at least 0.
        alpha: In [0, 1]; a negative one (`jaxq.awq.IDENTITY`, "no scaling") gives ones.
        reduce_across_tp: The weight's columns are spread over the mapped axis `TP_AXIS`.

    Returns:
        Scales [c_in] in float32: the weight is multiplied, the activation divided by them.

    Raises:
        JaxqError: ``reduce_across_tp`` outside such a mapping, or the magnitudes differ in length.

    Source: Lin et al., "AWQ" (arXiv:2306.00978); NVIDIA ModelOpt's ``int4.get_scale``.

    Example:
        >>> get_scale(jnp.array([4.0, 1.0]), jnp.array([0.5, 0.5]), 0.5).tolist()
        [1.4142135381698608, 0.7071067690849304]
    """
    a, w_mean = (jnp.asarray(as_array(part)).astype(jnp.float32) for part in (x_max, w_max))
    check_same_channels(a.shape, w_mean.shape)
    if reduce_across_tp:
        try:
            a, w_mean = jax.lax.pmean((a, w_mean), TP_AXIS)
        except NameError as error:
            raise JaxqError(
                f"reduce_across_tp needs a mapped axis: call get_scale under jax.vmap or jax.shard_map with an axis "
                f"named {TP_AXIS!r}"
            ) from error
    return as_given(awq.awq_scale(a, w_mean, jnp.asarray(alpha, jnp.float32)), x_max, w_max, alpha)
