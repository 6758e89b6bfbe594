"""The integer functions of ModelOpt's ``int4`` page: those of `jaxq.quant_utils`, with the page's shorter calls."""

from typing import Any, TypeGuard

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from jaxq.errors import JaxqError
from jaxq.modelopt import integers
from jaxq.modelopt.arrays import AnyArray


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
    return integers.find_scales(w, block_size, axis, alpha, zero, num_bits)


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
    return integers.rtn(w, s, block_size, axis, zp, num_bits)


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
    return integers.dq_tensor(w, s, block_size, axis, zp)


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
    return integers.quant_tensor(w, block_size, axis, alpha, zero, num_bits)


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
