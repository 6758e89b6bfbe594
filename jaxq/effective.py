"""Quantized weights as floats in the place of those that they came from."""

import jax.numpy as jnp
import numpy as np

from jaxq.formats import Quantized
from jaxq.groups import GroupResult


def effective_weight(result: GroupResult, index: int) -> np.ndarray:
    """What a site's codes stand for, divided by the channels' factors; of its initializer's shape and type.

    Args:
        result: The site's group.
        index: The site's place in it.
    """
    site, weight = result.group.sites[index], result.weights[index]
    zp, s2 = (None if read is None else jnp.asarray(read()) for read in (weight.zp, weight.s2))
    held = Quantized(jnp.asarray(weight.unpacked()), jnp.asarray(weight.s()), zp, s2)
    values = np.asarray(weight.fmt.dequantize(held)).reshape(site.c_in, site.count, site.c_out)
    factors = np.broadcast_to(result.s.reshape(-1, site.c_in), (site.count, site.c_in))
    values = values / factors.T[:, :, None]
    assert site.weight.dtype is not None
    stored = values.transpose(1, 2, 0) if site.transposed else values.transpose(1, 0, 2)
    return np.ascontiguousarray(stored.reshape(site.shape).astype(site.weight.dtype.numpy()))
