"""How much the error of a weight's product counts for the model's output."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from jaxq.graph.readers import is_table
from jaxq.graph.residuals import Residual, residual_of
from jaxq.graph.sites import Site


def sensitivities(sites: Sequence[Site], energies: Mapping[Site, float]) -> dict[Site, float]:
    """A factor for each weight's relative error: the root of its size and of a share in the residual stream.

    The share is that of the product which goes into the stream, the weight's own or the next one behind it: its energy
    over that of all that went in so far, itself included, as if these did not correlate. 1 where there is no stream.
    Half of that for weights whose product another one reads before the stream: it makes up for part of the error. What
    few outputs lose is easier to make up for than what many do, hence the size. Size and half stood nearer, roots
    nearer than shares, to what 8 bits for one kind of weight, or for one layer, bring to a small language model.

    Args:
        sites: Weights in graph order.
        energies: Mean squared norm of each product, as far as they are known; see `typical_energy`.
    """
    residuals = {site: found for site in sites if site in energies and (found := residual_of(site)) is not None}
    shares = _shares(residuals, energies)
    ends = {site.nodes[0]: share for site, share in shares.items()}
    return {site: float(np.sqrt(site.c_in * site.columns) * _root(site, shares, ends)) for site in sites}


def typical_energy(energies: np.ndarray) -> float:
    """The energy of a product as if all its columns had the median's: a few channels of some models hold nearly all."""
    return float(np.median(energies) * energies.size)


def _shares(residuals: Mapping[Site, Residual], energies: Mapping[Site, float]) -> dict[Site, float]:
    """For each site whose product is added to the stream, its share in the sum."""
    streams: dict[ir.Node, float] = {}
    shares = {}
    for site, residual in residuals.items():
        total = _before(residual.other, streams) + energies[site]
        shares[site] = energies[site] / total if total else 1.0
        adding = residual.sum.producer()
        assert adding is not None
        streams[adding] = total
    return shares


def _before(value: ir.Value, streams: Mapping[ir.Node, float]) -> float:
    """Energy of what a product is added to: an earlier sum, or rows of a table; 0 of what is not known."""
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Identity") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        return 0.0
    table = node.inputs[0].const_value if is_table(node) and node.inputs[0] is not None else None
    if table is not None:
        rows = table.numpy()[:: max(1, table.shape.numpy()[0] // _ROWS)].astype(np.float32)
        return typical_energy(np.square(rows).mean(axis=0).ravel())
    return streams.get(node, 0.0)


_ROWS = 4096
_LEFT = 0.5
"""Of an error, after the next product has made up for some of it."""


def _root(site: Site, shares: Mapping[Site, float], ends: Mapping[ir.Node, float]) -> float:
    """The root of the share, half of it where another product is in between."""
    if site in shares or site.has_table or site.nested:
        return shares.get(site, 1.0) ** 0.5
    following = list(_next(site, ends))
    return _LEFT * max(ends[node] for node in following) ** 0.5 if following else 1.0


def _next(site: Site, ends: Mapping[ir.Node, float]) -> Iterator[ir.Node]:
    """The first products behind a site's that go into the stream."""
    seen: set[ir.Node] = set(site.nodes)
    ahead = list(site.nodes)
    while ahead:
        node = ahead.pop()
        for value in node.outputs:
            for reader, _ in value.uses():
                if reader in ends:
                    yield reader
                elif reader not in seen:
                    seen.add(reader)
                    ahead.append(reader)
