"""The moments of the activations that a group of sites multiplies, looked up by their keys."""

from collections.abc import Sequence
from typing import Protocol

from jaxq.graph.activations import Activation
from jaxq.numerics.moments import Moments, MomentsOf, mean_moments


class MomentLookup(Protocol):
    """Moments by key: a dictionary, or a `jaxq.calibration.moment_store.MomentStore`."""

    def __contains__(self, key: str, /) -> bool: ...

    def __getitem__(self, key: str, /) -> Moments: ...


def has_moments(activation: Activation, known: MomentLookup) -> bool:
    """True if the moments of all matrices are known: one entry that they share, or one for each."""
    return activation.shared_key in known or all(key in known for key in activation.keys)


def moments_of(activations: Sequence[Activation], known: MomentLookup) -> MomentsOf | None:
    """The moments of each matrix's activation, over the tokens of all activations that it multiplies.

    Args:
        activations: The activations of a group; see `jaxq.graph.sites.Group.activations`.
        known: Moments by key.

    Returns:
        A function of the matrix's number, which looks them up at each call; None if there are no activations, or the
        moments of one are not known.
    """
    if not activations or not all(has_moments(activation, known) for activation in activations):
        return None

    def moments(index: int) -> Moments:
        keys = [a.shared_key if a.shared_key in known else a.keys[index] for a in activations]
        return mean_moments([known[key] for key in keys])

    return moments
