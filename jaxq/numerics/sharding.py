"""Arrays over the explicit axes of a device mesh, where JAX does not choose how a result is sharded."""

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped


def whole(x: Shaped[Array, "..."], *axes: int) -> Shaped[Array, "..."]:
    """``x`` with these axes whole on each device, for operations that JAX does not shard along explicit mesh axes.

    All other arrays stay as they are: those on one device, and those over automatic mesh axes, where XLA chooses.

    Args:
        x: Array of any rank and dtype.
        axes: The axes, not negative; none for all.

    Example:
        >>> whole(jax.numpy.arange(3)).tolist()
        [0, 1, 2]
    """
    sharding = jax.typeof(x).sharding
    names = (*sharding.spec, *(None,) * (len(x.shape) - len(sharding.spec)))
    axes = axes or tuple(range(len(names)))
    if all(names[axis] is None for axis in axes):
        return x
    kept = PartitionSpec(*(None if axis in axes else name for axis, name in enumerate(names)))
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, kept))


def summed(x: Shaped[Array, "..."], *others: Shaped[Array, "..."]) -> PartitionSpec | NamedSharding | None:
    """Sharding of a matrix that is a sum over an axis of ``x``: whole on each device; None to let XLA choose.

    Args:
        x: An array that may lie over explicit mesh axes.
        others: Further operands of the sum.

    Example:
        >>> summed(jax.numpy.ones((2, 2))) is None
        True
    """
    for operand in (x, *others):
        sharding = jax.typeof(operand).sharding
        if any(name is not None for name in sharding.spec):
            return NamedSharding(sharding.mesh, PartitionSpec(None, None))
    return None
