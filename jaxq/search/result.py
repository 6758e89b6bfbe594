"""The results of a search: a record for each weight, and codes and scales for each group of siblings."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxq.formats.base import Quantized
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.sites import Group, Site


@dataclass(frozen=True)
class Layer:
    """One quantized weight.

    Attributes:
        name, nodes: Names of the weight and of the nodes that read it.
        activation: Name of the activation that the nodes multiply; for a table of Gather, the weight's name.
        c_in, c_out: Rows and columns; for stacks and Conv, those of one matrix or group.
        dtype, block_size, scale_dtype: The format.
        nbytes: Bytes of all copies in the file, scales included. In forms that store the float weight: the bytes that
            codes and scales would take.
        loss: Mean over calibration tokens of the squared output error, summed over columns and matrices; None without
            data.
        loss_rtn: The loss of round to nearest in the same format.
        relative_output_error: ``sqrt(loss / output energy)``.
        sqnr_db: Weight energy over the energy of its error, in dB.
        alpha: AWQ's alpha, of several matrices the mean of those that are scaled; None without scaling.
        fold: Where the activation's division went: "vector" (a norm's weight), "weight" (the linear layer before),
            "Mul" (a new node), or "" without scaling.
        clip_mean, clip_min: Mean and least clip ratio of the blocks.
        clip_share: Share of blocks that are clipped.
        matrices: Number of matrices: 1, or those of a stack, or the groups of a Conv.
        is_table: Gather reads the weight, alone or beside products.
        nested: Some or all of the nodes lie in a subgraph, which calibration does not see.
        note: Why the method did less to this weight than to others; else "".
    """

    name: str
    nodes: tuple[str, ...]
    activation: str
    c_in: int
    c_out: int
    dtype: str
    block_size: int
    scale_dtype: str
    nbytes: int
    loss: float | None
    loss_rtn: float | None
    relative_output_error: float | None
    sqnr_db: float | None
    alpha: float | None
    fold: str
    clip_mean: float
    clip_min: float
    clip_share: float
    matrices: int = 1
    is_table: bool = False
    nested: bool = False
    note: str = ""

    @classmethod
    def planned(cls, site: Site, weight: StoredWeight) -> "Layer":
        """The record of a weight before any search: sizes and format are known, losses are not."""
        return cls(
            name=site.name,
            nodes=tuple(str(node.name) for node in site.nodes),
            activation=str(site.activation_values[0].name) if site.activation_values else site.name,
            c_in=site.c_in,
            c_out=site.c_out,
            dtype=weight.fmt.dtype,
            block_size=weight.fmt.block_size,
            scale_dtype=weight.fmt.scale_dtype,
            nbytes=weight.nbytes,
            loss=None,
            loss_rtn=None,
            relative_output_error=None,
            sqnr_db=None,
            alpha=None,
            fold="",
            clip_mean=1.0,
            clip_min=1.0,
            clip_share=0.0,
            matrices=site.count,
            is_table=site.has_table,
            nested=bool(site.nested),
        )

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.matrices * self.c_in * self.c_out


@dataclass(frozen=True, eq=False)
class GroupResult:
    """The quantized weights of a group.

    Attributes:
        group: The group.
        weights, layers: One of each for each site, in the group's order.
        s: Factor of the input channels [c_in], of several matrices [matrices, c_in], float32.
        scaled: ``s`` is not all ones: the activation has to be divided by it.
        tokens: Tokens behind the moments; of several matrices, the greatest number.
    """

    group: Group
    weights: tuple[StoredWeight, ...]
    layers: tuple[Layer, ...]
    s: np.ndarray
    scaled: bool
    tokens: int


def effective_weight(result: GroupResult, index: int) -> np.ndarray:
    """A site's dequantized weight, divided by the channels' factors, in the shape and type of its initializer.

    Args:
        result: The result of the site's group.
        index: The site's index in the group.
    """
    site, weight = result.group.sites[index], result.weights[index]
    zp, s2 = (None if read is None else jnp.asarray(read()) for read in (weight.zp, weight.s2))
    quantized = Quantized(jnp.asarray(weight.unpacked()), jnp.asarray(weight.s()), zp, s2)
    values = np.asarray(weight.fmt.dequantize(quantized)).reshape(site.c_in, site.count, site.c_out)
    factors = np.broadcast_to(result.s.reshape(-1, site.c_in), (site.count, site.c_in))
    values = values / factors.T[:, :, None]
    assert site.weight.dtype is not None
    stored = values.transpose(1, 2, 0) if site.transposed else values.transpose(1, 0, 2)
    return np.ascontiguousarray(stored.reshape(site.shape).astype(site.weight.dtype.numpy()))
