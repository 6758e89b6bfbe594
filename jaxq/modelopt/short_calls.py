"""The integer functions of ModelOpt's ``int4`` page: those of `jaxq.quant_utils`, and the page's shorter calls of them.

The shorter calls have no axis: ``find_scales(w, 128, 0.5, True)`` gives alpha and use_zero_point after the block size,
``dq_tensor(q, s, 128, zp)`` the zero points.
"""

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
    """Scale, and zero point, of each block; see `jaxq.quant_utils.find_scales`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank; float32, float16 or bfloat16, finite; integers count as float32.
        block_size: Rows a block, or -1 for the whole axis.
        quantize_axis: The axis that is split into blocks, an integer. In the shorter call this place holds ``alpha``,
            and the next one ``use_zero_point``: an argument that is no integer, or that a bool follows, is ``alpha``.
        alpha: Clip ratio above 0: a number, an array that broadcasts, or `AWQClipHelper.best_alpha`.
        use_zero_point: Asymmetric, unsigned codes.
        num_bits: 2 to 8.

    Returns:
        ``s`` in ``w``'s dtype with ``n_blocks`` in place of the axis, and ``zp`` (uint8, the same shape) or None.

    Raises:
        JaxqError: an argument is out of range or given twice, ``alpha`` does not fit the blocks, or ``w`` has no
            numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> s, zp = find_scales(jnp.array([[7.0], [-3.5]]), 2, 0.5)
        >>> s.tolist(), zp
        ([[0.5]], None)
    """
    axis, alpha, use_zero_point = _resolve_alpha(quantize_axis, alpha, use_zero_point)
    return integers.find_scales(w, block_size, axis, alpha, use_zero_point, num_bits)


def rtn(
    w: Float[AnyArray, "..."],
    s: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int | ArrayLike | None = 0,
    zp: Num[AnyArray, "..."] | None = None,
    num_bits: int = 4,
) -> Num[AnyArray, "..."]:
    """Codes of ``w`` by round to nearest, ties to even; see `jaxq.quant_utils.rtn`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank, finite; floats or integers.
        s: Scales as `find_scales` returns them; not 0.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks, an integer; None is 0. In the shorter call this place holds
            ``zp``: an argument that is neither an integer nor None is ``zp``.
        zp: Zero points of any integer or float type, or None.
        num_bits: 2 to 8.

    Returns:
        Codes of ``w``'s shape, int8, or uint8 with a zero point.

    Raises:
        JaxqError: the number of scale rows is not ``ceil(dim / block_size)``, or ``zp`` is given twice.

    Example:
        >>> import jax.numpy as jnp
        >>> rtn(jnp.array([[2.5], [-9.0]]), jnp.array([[1.0]]), 2, jnp.array([[8]], jnp.uint8)).tolist()
        [[10], [0]]
    """
    axis, zp = _resolve_zero_point(quantize_axis, zp)
    return integers.rtn(w, s, block_size, axis, zp, num_bits)


def dq_tensor(
    w: Num[AnyArray, "..."],
    s: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int | ArrayLike | None = 0,
    zp: Num[AnyArray, "..."] | None = None,
) -> Float[AnyArray, "..."]:
    """Weights from codes, ``(w - zp) * s``; see `jaxq.quant_utils.dq_tensor`.

    Args:
        w: Codes of any integer or float type.
        s: Scales, one a block.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks, an integer; None is 0. In the shorter call this place holds
            ``zp``: an argument that is neither an integer nor None is ``zp``.
        zp: Zero points of any integer or float type, or None.

    Returns:
        Weights of ``w``'s shape in ``s``'s dtype.

    Raises:
        JaxqError: the number of scale rows is not ``ceil(dim / block_size)``, or ``zp`` is given twice.

    Example:
        >>> import jax.numpy as jnp
        >>> dq_tensor(jnp.array([[10], [0]]), jnp.array([[0.5]]), 2, jnp.array([[8]], jnp.uint8)).tolist()
        [[1.0], [-4.0]]
    """
    axis, zp = _resolve_zero_point(quantize_axis, zp)
    return integers.dq_tensor(w, s, block_size, axis, zp)


def quant_tensor(
    w: Float[AnyArray, "..."],
    block_size: int,
    quantize_axis: int | ArrayLike = 0,
    alpha: ArrayLike = 1.0,
    use_zero_point: bool = False,
    num_bits: int = 4,
) -> tuple[Num[AnyArray, "..."], Float[AnyArray, "..."], Num[AnyArray, "..."] | None]:
    """Codes, scales and zero points of ``w``; see `jaxq.quant_utils.quant_tensor`.

    Args:
        w: Weight, ``[c_in, c_out]`` or of any rank; float32, float16 or bfloat16, finite; integers count as float32.
        block_size: Rows a block, or -1 for the whole axis.
        quantize_axis: The axis that is split into blocks, an integer. In the shorter call this place holds ``alpha``,
            and the next one ``use_zero_point``: an argument that is no integer, or that a bool follows, is ``alpha``.
        alpha: Clip ratio; see `find_scales`.
        use_zero_point: Asymmetric, unsigned codes.
        num_bits: 2 to 8.

    Returns:
        Codes (int8, or uint8 with a zero point), scales in ``w``'s dtype, and zero points (uint8) or None.

    Raises:
        JaxqError: as `find_scales`.

    Example:
        >>> import jax.numpy as jnp
        >>> q, s, zp = quant_tensor(jnp.array([[7.0], [-3.5]]), 2, 0.5)
        >>> q.tolist(), s.tolist(), zp
        ([[7], [-7]], [[0.5]], None)
    """
    axis, alpha, use_zero_point = _resolve_alpha(quantize_axis, alpha, use_zero_point)
    return integers.quant_tensor(w, block_size, axis, alpha, use_zero_point, num_bits)


def _is_axis(argument: object) -> TypeGuard[int]:
    return isinstance(argument, int | np.integer) and not isinstance(argument, bool)


def _resolve_alpha(third: Any, fourth: Any, use_zero_point: bool) -> tuple[int, Any, bool]:
    """Axis, alpha and use_zero_point, from the third and fourth argument of the fuller or the shorter call."""
    if isinstance(fourth, bool | np.bool_):
        if use_zero_point:
            raise JaxqError("use_zero_point is given twice: name the arguments after block_size")
        return 0, third, bool(fourth)
    if _is_axis(third):
        return int(third), fourth, use_zero_point
    if not (isinstance(fourth, float) and fourth == 1):  # alpha's default: nothing was given
        raise JaxqError(
            f"{fourth!r} follows the alpha {third!r}: give use_zero_point there, a bool, or quantize_axis before alpha"
        )
    return 0, third, use_zero_point


def _resolve_zero_point(fourth: Any, zp: Any) -> tuple[int, Any]:
    """Axis and zero points, from the fourth argument and ``zp`` of the fuller or the shorter call."""
    if fourth is None or _is_axis(fourth):
        return (0 if fourth is None else int(fourth)), zp
    if zp is not None:
        raise JaxqError("the zero points are given twice: after block_size give quantize_axis, or zp")
    return 0, fourth
