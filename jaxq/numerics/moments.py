"""Second moments of activations: the searches need nothing else from the calibration data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from jaxq.errors import JaxqError
from jaxq.numerics import checks
from jaxq.numerics.blocks import split
from jaxq.numerics.jit import jit
from jaxq.numerics.sharding import summed, whole

# A symmetric product needs its upper triangle only: four panels do 5/8 of the full work. More panels save little more
# and compile longer.
_PANELS = 4
_MIN_PANEL = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MomentSums:
    """Running sums over tokens; `finish` turns them into `Moments`. Only the upper panels of ``xx`` are filled."""

    xx: Float[Array, "c_in c_in"]
    x_abs: Float[Array, "c_in"]
    tokens: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Second moments of one activation.

    Attributes:
        h: ``X'X / tokens``, symmetric, float32.
        a: ``mean |X|`` over tokens, float32.
        tokens: Number of real (not padded) tokens.
    """

    h: Float[Array, "c_in c_in"]
    a: Float[Array, "c_in"]
    tokens: Int[Array, ""]


def panels(c_in: int) -> list[tuple[int, int]]:
    """Row ranges ``(start, stop)`` that cut ``[0, c_in)`` into at most four panels of at least 64 rows.

    Example:
        >>> panels(200)
        [(0, 67), (67, 134), (134, 200)]
    """
    count = max(1, min(_PANELS, c_in // _MIN_PANEL))
    width = -(-c_in // count)
    return [(i, min(i + width, c_in)) for i in range(0, c_in, width)]


def _sums(name: str, value: object) -> None:
    if not isinstance(value, MomentSums):
        raise JaxqError(f"{name} is {type(value).__name__}: give MomentSums, as jaxq.zero_sums and jaxq.accumulate do")


def check_whole_moments(name: str, value: object) -> None:
    """Checks that a value is `Moments`.

    Raises:
        JaxqError: it is an array of tokens or of second moments, sums that are not finished, ...
    """
    if not isinstance(value, Moments):
        shape = f" of shape {list(value.shape)}" if isinstance(value, jax.Array | np.ndarray) else ""
        raise JaxqError(
            f"{name} is {type(value).__name__}{shape}: give Moments, as "
            "jaxq.finish(jaxq.accumulate(sums, tokens, keep)) makes them from tokens"
        )


def zero_sums(c_in: int) -> MomentSums:
    """Sums before the first token.

    Args:
        c_in: Number of channels of the activation.

    Raises:
        JaxqError: ``c_in`` is no positive integer.

    Example:
        >>> zero_sums(2).xx.shape
        (2, 2)
    """
    checks.whole_number("c_in", c_in)
    if c_in < 1:
        raise JaxqError(f"c_in is {c_in}: give the number of channels, at least 1")
    return MomentSums(jnp.zeros((c_in, c_in), jnp.float32), jnp.zeros(c_in, jnp.float32), jnp.zeros((), jnp.int32))


@jit(checks={"sums": _sums, "x": checks.array, "keep": checks.array})
def accumulate(sums: MomentSums, x: Float[Array, "tokens c_in"], keep: Float[Array, "tokens"]) -> MomentSums:
    """Adds a batch of activations to the sums. Products are in full float32, because TF32 is too coarse for ``h``.

    Args:
        sums: The sums so far.
        x: Activations, any float dtype.
        keep: 1 for a real token, 0 for padding; padding may hold anything, NaN included.

    Raises:
        JaxqError: the shapes do not fit each other.

    Example:
        >>> sums = accumulate(zero_sums(2), jnp.array([[1.0, -2.0], [9.0, 9.0]]), jnp.array([1.0, 0.0]))
        >>> finish(sums).h.tolist(), finish(sums).a.tolist()
        ([[1.0, -2.0], [-2.0, 4.0]], [1.0, 2.0])
    """
    if x.ndim != 2 or x.shape[1] != sums.xx.shape[0] or keep.shape != x.shape[:1]:
        raise JaxqError(
            f"x has shape {list(x.shape)} and keep {list(keep.shape)}: sums over {sums.xx.shape[0]} channels need "
            f"[tokens, {sums.xx.shape[0]}] and [tokens]"
        )
    # Selected, not multiplied by 0: padding may hold NaN.
    x = jnp.where(keep[:, None] > 0, x, 0).astype(jnp.float32)
    xx, x = whole(sums.xx), whole(x, 1)
    sharding = summed(x)
    # Each panel of rows from its diagonal to the right: the rest follows from symmetry, in `finish`.
    for start, stop in panels(x.shape[1]):
        product = jnp.dot(x[:, start:stop].T, x[:, start:], precision=Precision.HIGHEST, out_sharding=sharding)
        xx = xx.at[start:stop, start:].add(product)
    return MomentSums(xx, sums.x_abs + jnp.sum(jnp.abs(x), axis=0), sums.tokens + jnp.sum(keep > 0, dtype=jnp.int32))


@jit(donate_argnames="sums")
def accumulate_in_place(sums: MomentSums, x: Float[Array, "tokens c_in"], keep: Float[Array, "tokens"]) -> MomentSums:
    """`accumulate` in the memory of ``sums``, which are gone afterwards: for loops that need the old sums no more."""
    return accumulate(sums, x, keep)


@jit(checks={"sums": _sums})
def finish(sums: MomentSums) -> Moments:
    """Moments from sums; without any token they are zero."""
    # Below the diagonal the panels are filled only in part, so mirror the upper triangle.
    upper = jnp.triu(whole(sums.xx))
    full = upper + jnp.triu(upper, 1).T
    count = jnp.maximum(sums.tokens, 1).astype(jnp.float32)
    return Moments(full / count, sums.x_abs / count, sums.tokens)


def mean_moments(moments: Sequence[Moments]) -> Moments:
    """Moments over the tokens of several activations together, for a weight that multiplies more than one.

    Example:
        >>> one, three = (Moments(n * jnp.eye(1), n * jnp.ones(1), jnp.array(n)) for n in (1, 3))
        >>> mean = mean_moments([one, three])
        >>> mean.h.tolist(), mean.tokens.item()
        ([[2.5]], 4)
    """
    if len(moments) == 1:
        return moments[0]
    tokens = sum(m.tokens for m in moments)
    share = [m.tokens / jnp.maximum(tokens, 1) for m in moments]
    h = sum(f * m.h for f, m in zip(share, moments, strict=True))
    a = sum(f * m.a for f, m in zip(share, moments, strict=True))
    return Moments(jnp.asarray(h), jnp.asarray(a), jnp.asarray(tokens))


@jit(checks={"d": checks.array, "h": checks.square})
def output_error(d: Float[Array, "c_in c_out"], h: Float[Array, "c_in c_in"]) -> Float[Array, "c_out"]:
    """Mean squared output error of each column: ``diag(D' H D)``; its sum is ``||X D||^2 / tokens``.

    Exact in exact arithmetic, and of the error ``D = W' - W`` itself: no large outputs are subtracted.
    The symmetry of ``h`` saves three eighths of the ``2 c_in^2 c_out`` operations.

    Args:
        d: Weight error.
        h: Second moment of the activations, symmetric.

    Raises:
        JaxqError: the shapes of ``d`` and ``h`` do not fit each other.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
        >>> d = jnp.array([[1.0], [-1.0]])
        >>> output_error(d, x.T @ x / 2).tolist()     # x @ d = [-1, -1]
        [1.0]
    """
    check_moments(d, h, "d")
    d, h = whole(d, 0), whole(h)
    total = jnp.zeros(d.shape[1], jnp.float32)
    # The blocks right of the diagonal count twice, in place of those below it.
    for start, stop in panels(d.shape[0]):
        rows = jnp.concatenate([h[start:stop, start:stop], 2 * h[start:stop, stop:]], axis=1)
        product = jnp.dot(rows, d[start:], precision=Precision.HIGHEST)
        total = total + jnp.sum(d[start:stop] * product, axis=0)
    return total


@jit(checks={"h": checks.square, "shrinkage": checks.number})
def shrunk(
    h: Float[Array, "c_in c_in"], tokens: Int[Array, ""], shrinkage: float | Float[Array, ""]
) -> Float[Array, "c_in c_in"]:
    """Second moments shrunk towards their diagonal: ``(1 - t) H + t diag(H)``.

    ``t = shrinkage / (shrinkage + tokens)``. Few tokens show correlations between channels that more tokens would not.
    The result is the moment after ``shrinkage`` more tokens of the same energy whose channels are uncorrelated.

    Args:
        h: Second moment.
        tokens: Number of tokens that ``h`` is the mean of.
        shrinkage: Number of uncorrelated tokens to add, at least 0.

    Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004), here
        towards the diagonal.

    Example:
        >>> shrunk(jnp.array([[4.0, 2.0], [2.0, 1.0]]), jnp.int32(30), 10.0).tolist()
        [[4.0, 1.5], [1.5, 1.0]]
    """
    h, count = whole(h), jnp.asarray(tokens, jnp.float32)
    share = count / jnp.maximum(shrinkage + count, 1)
    diagonal = jnp.eye(h.shape[0], dtype=bool)
    return jnp.where(diagonal, h, share * h)


@jit
def scaled_moment(h: Float[Array, "c_in c_in"], s: Float[Array, "c_in"]) -> Float[Array, "c_in c_in"]:
    """Second moment of an activation divided by ``s``: ``diag(1/s) H diag(1/s)``.

    Example:
        >>> scaled_moment(jnp.array([[4.0, 2.0], [2.0, 1.0]]), jnp.array([2.0, 1.0])).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    return h / s[:, None] / s[None, :]


@jit(static_argnames="block_size")
def diagonal_blocks(h: Float[Array, "c_in c_in"], block_size: int) -> Float[Array, "n_blocks block block"]:
    """The blocks ``H_bb`` on the diagonal of ``h``; a ragged last block is padded with zeros."""
    rows = split(split(whole(h), block_size, axis=0), block_size, axis=2)
    return jnp.moveaxis(jnp.diagonal(rows, axis1=0, axis2=2), -1, 0)


def check_moments(w: Array, h: Array, name: str = "w") -> None:
    """Checks that a weight and a second moment fit each other.

    Args:
        w: The weight.
        h: The second moment.
        name: The weight's name, for the error.

    Raises:
        JaxqError: their shapes are not ``[c_in, c_out]`` and ``[c_in, c_in]``, or one is no array.
    """
    checks.array(name, w)
    checks.square("h", h)
    if w.ndim != 2 or h.shape[0] != w.shape[0]:
        shapes = f"{name} has shape {list(w.shape)} and h {list(h.shape)}"
        raise JaxqError(f"{shapes}: they need [c_in, c_out] and [c_in, c_in]")


MomentsOf = Callable[[int], Moments]
"""From the index of a matrix in its stack to the moments of the activation that it multiplies; each call reads anew."""
