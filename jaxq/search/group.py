"""Quantize the sibling weights of one activation together, and take the result apart again."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.formats.registry import WeightFormat
from jaxq.graph.sites import Group, Site
from jaxq.methods.choose import Part
from jaxq.methods.keep_better import keep_better
from jaxq.methods.registry import ROUND_TO_NEAREST, Method, MethodSpec
from jaxq.methods.targets import corrected_target
from jaxq.numerics.drift import Drift
from jaxq.numerics.moments import Moments, MomentsOf
from jaxq.search.pieces import Piece, join_weight, piece, searched_layer
from jaxq.search.result import GroupResult


def quantize_group(
    group: Group,
    formats: Sequence[WeightFormat],
    moments: MomentsOf | None,
    spec: MethodSpec,
    drift: Drift | None = None,
) -> GroupResult:
    """Runs the method on the group's weights, those of one format side by side, one matrix after the other.

    Args:
        group: Sites that read one activation, or one site that reads several or none.
        formats: The format of each site.
        moments: Moments of the activation, if there are any.
        spec: The method; where several activations are read, or patches of one, or Gather or a subgraph reads a weight
            too, one that scales none stands in for it, and where nothing is read, or no token is, round to nearest.
        drift: How far the activation has drifted, of groups of one matrix each; its ``outputs`` are the sites'.
    """
    method = spec.steps
    notes = [_note(site, method) for site in group.sites]
    if not all(site.can_scale for site in group.sites):
        method = replace(method, scales=False)
    if not group.activations:
        method, moments = ROUND_TO_NEAREST, None
    pieces: list[list[Piece]] = [[] for _ in group.sites]
    tokens = 0
    for index in range(group.count):
        own = None if moments is None else moments(index)
        tokens = max(tokens, 0 if own is None else int(own.tokens))
        matrix = _quantize_matrix(group.sites, formats, index, own, method, spec, drift)
        for made, new in zip(pieces, matrix, strict=True):
            made.append(new)
    weights = [join_weight(*each) for each in zip(pieces, group.sites, formats, strict=True)]
    layers = [
        searched_layer(made, site, weight, note)
        for made, site, weight, note in zip(pieces, group.sites, weights, notes, strict=True)
    ]
    s = np.stack([p.s for p in pieces[0]])
    scaled = any(p.scaled for p in pieces[0])
    return GroupResult(group, tuple(weights), tuple(layers), s if group.count > 1 else s[0], scaled, tokens)


def _quantize_matrix(
    sites: Sequence[Site],
    formats: Sequence[WeightFormat],
    index: int,
    moments: Moments | None,
    method: Method,
    spec: MethodSpec,
    drift: Drift | None,
) -> list[Piece]:
    """One matrix of each site."""
    unseen = moments is not None and int(moments.tokens) == 0
    if unseen:
        method, moments = ROUND_TO_NEAREST, None
    lots = _lots(sites, formats)
    parts = [_part(lot, fmt, index) for fmt, lot in lots.items()]
    targets = None
    if drift is not None and moments is not None:
        pairs = zip(parts, lots.values(), strict=True)
        targets = [_target(w, lot, drift, sites, moments, spec) for (w, _), lot in pairs]
    widths = [[site.c_out for site in lot] for lot in lots.values()]
    choices, errors = keep_better(parts, widths, moments, method, spec, targets)
    made: dict[Site, Piece] = {}
    for (_, fmt), lot, choice, error in zip(parts, lots.values(), choices, errors, strict=True):
        stop = 0
        for site in lot:
            start, stop = stop, stop + site.c_out
            made[site] = piece(choice, error, site, slice(start, stop), fmt, unseen)
    return [made[site] for site in sites]


def _note(site: Site, method: Method) -> str:
    """What the method cannot do to a weight, and why."""
    parts = []
    if site.nested:
        inside = "in a subgraph" if len(site.nested) == len(site.nodes) else "in a subgraph too"
        parts.append(f"{inside}: {'not scaled' if site.activation_values else 'rounded to nearest'}")
    if site.has_table:
        parts.append("a table of Gather" + (" too: not scaled" if site.activation_values else ": rounded to nearest"))
    if site.kernel and site.activation_values and method.needs_data:
        size = 4 * site.count * site.c_in**2 / 1e9
        if not site.activations:
            parts.append(f"the moments of its patches would take {size:.1f} GB: rounded to nearest")
        elif method.scales and not site.nested:
            parts.append("a kernel of Conv: its channels are not scaled")
    return "; ".join(parts)


def _lots(sites: Sequence[Site], formats: Sequence[WeightFormat]) -> dict[WeightFormat, list[Site]]:
    lots: dict[WeightFormat, list[Site]] = {}
    for site, fmt in zip(sites, formats, strict=True):
        lots.setdefault(fmt, []).append(site)
    return lots


def _part(sites: Sequence[Site], fmt: WeightFormat, index: int) -> Part:
    w = jnp.asarray(_side_by_side(sites, index))
    return w, fmt.of_weights(str(w.dtype))


def _side_by_side(sites: Sequence[Site], index: int) -> np.ndarray:
    """The sites' columns in one array; each is read when its turn comes, so that one at a time is held twice."""
    if len(sites) == 1:
        return sites[0].array(index)
    dtypes = [site.weight.const_value.dtype.numpy() for site in sites if site.weight.const_value is not None]
    w = np.empty((sites[0].c_in, sum(site.c_out for site in sites)), np.result_type(*dtypes))
    stop = 0
    for site in sites:
        start, stop = stop, stop + site.c_out
        w[:, start:stop] = site.array(index)
    return w


def _target(
    w: jax.Array, lot: Sequence[Site], drift: Drift, sites: Sequence[Site], moments: Moments, spec: MethodSpec
) -> jax.Array:
    """What the weights of a lot, side by side, are to come near."""
    outputs = dict(zip(sites, drift.outputs, strict=True))
    found = [outputs[site] for site in lot]
    columns = [jnp.zeros((site.c_in, site.c_out)) if x is None else x for site, x in zip(lot, found, strict=True)]
    ridge = spec.ridge / int(moments.tokens)
    return corrected_target(w, moments.h, drift.input, jnp.concatenate(columns, axis=1), ridge)
