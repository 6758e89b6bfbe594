"""AWQ's magnitudes and scales, under the names of ModelOpt's ``int4`` page."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxq.errors import JaxqError
from jaxq.methods import awq
from jaxq.modelopt.arrays import AnyArray, as_floats, as_given
from jaxq.modelopt.magnitudes import channel_magnitude, check_matrix, check_same_channels, mean_magnitude

TP_AXIS = "tp"
"""Name of the mapped axis that `get_scale` averages over."""


def get_act_scale(x: Float[AnyArray, "... c_in"]) -> Float[AnyArray, "c_in"]:
    """Mean magnitude of each input channel: ``mean |x|`` over all tokens.

    Args:
        x: Activations ``[tokens, c_in]``, or ``[..., c_in]``, of floats or integers.

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
    """Relative magnitude of each input channel of a weight: mean over columns of ``|w| / max|block|``.

    Args:
        weight: Weight [c_in, c_out] of floats or integers.
        block_size: Consecutive rows a block; the last block may be ragged. None or -1 for whole columns.

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

    With ``reduce_across_tp`` both magnitudes are first averaged over the axis "tp" of `jax.vmap` or `jax.shard_map`:
    shards of a weight with equally many output columns then give the scale of the whole weight.

    Args:
        x_max: Result of `get_act_scale` [c_in], at least 0.
        w_max: Result of `get_weight_scale` [c_in], at least 0.
        alpha: In [0, 1]; a negative alpha (`jaxq.methods.grids.IDENTITY`, "no scaling") gives ones.
        reduce_across_tp: The weight's columns are distributed over the mapped axis `TP_AXIS`.

    Returns:
        Scales [c_in] in float32: the weight is multiplied, the activation divided by them.

    Raises:
        JaxqError: the magnitudes differ in length, or ``reduce_across_tp`` is set and no axis "tp" is mapped.

    Source: Lin et al., "AWQ" (arXiv:2306.00978); NVIDIA ModelOpt's ``int4.get_scale``.

    Example:
        >>> get_scale(jnp.array([4.0, 1.0]), jnp.array([0.5, 0.5]), 0.5).tolist()
        [1.4142135381698608, 0.7071067690849304]
    """
    a, w_mean = (jnp.asarray(as_floats(magnitudes)).astype(jnp.float32) for magnitudes in (x_max, w_max))
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
