"""Estimate how much the error of a weight's product affects the model's output."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from jaxq.graph.readers import is_table
from jaxq.graph.residuals import Residual, residual_of
from jaxq.graph.sites import Site


def sensitivities(sites: Sequence[Site], energies: Mapping[Site, float]) -> dict[Site, float]:
    """A factor for each weight's relative error: ``sqrt(size * share)``, halved where another product follows.

    ``share`` is the share of a product in the residual stream: its energy over the energy of everything that was added
    to the stream so far, itself included. The summands count as uncorrelated. Without a residual stream the share is 1.

    A weight whose product does not go into the stream takes the share of the next product that does, and half of the
    root: the product in between compensates for part of the error. Errors of few outputs are easier to compensate for
    than errors of many, hence the size. See docs/decisions for how the formula was chosen.

    Args:
        sites: Weights in graph order.
        energies: Mean squared norm of the products that are known; see `typical_energy`.
    """
    residuals = {site: r for site in sites if site in energies and (r := residual_of(site)) is not None}
    shares = _shares(residuals, energies)
    ends = {site.nodes[0]: share for site, share in shares.items()}
    return {site: float(np.sqrt(site.c_in * site.columns) * _root(site, shares, ends)) for site in sites}


def typical_energy(energies: np.ndarray) -> float:
    """Median energy of a product's columns times their number: in some models a few channels have nearly all energy."""
    return float(np.median(energies) * energies.size)


def _shares(residuals: Mapping[Site, Residual], energies: Mapping[Site, float]) -> dict[Site, float]:
    """The share in the stream of each site whose product is added to it."""
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
    """Energy of the value that a product is added to: an earlier sum, or rows of a table; 0 if it is unknown."""
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
"""Rows of a table on which its energy is measured."""

_REMAINING = 0.5
"""Share of an error that remains after the next product has compensated for some of it."""


def _root(site: Site, shares: Mapping[Site, float], ends: Mapping[ir.Node, float]) -> float:
    """The root of the share; half of it if another product is in between."""
    if site in shares or site.has_table or site.nested:
        return shares.get(site, 1.0) ** 0.5
    following = list(_next(site, ends))
    return _REMAINING * max(ends[node] for node in following) ** 0.5 if following else 1.0


def _next(site: Site, ends: Mapping[ir.Node, float]) -> Iterator[ir.Node]:
    """The first products after a site's that go into the stream."""
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
