"""Quantize the sibling weights of one activation together, and split the result by weight."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.formats.registry import WeightFormat
from jaxq.graph.sites import Group, Site
from jaxq.methods.choose import Part
from jaxq.methods.columns import map_columns
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
    """Runs the method on the group's weights, one matrix after the other.

    The method scales channels only where all that reads the weights is products with one activation. Weights of tables
    and subgraphs alone, and matrices that no token reached, are rounded to nearest.

    Args:
        group: Sites that read one activation, or one site that reads several or none.
        formats: The format of each site.
        moments: Second moments of the activation by matrix, if there are any.
        spec: The method.
        drift: How far the activation has drifted, for groups of one matrix each; its ``outputs`` are the sites'.

    Raises:
        JaxqError: a weight is NaN or infinite, or the method needs data and there are no moments.
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
        matrix_moments = None if moments is None else moments(index)
        tokens = max(tokens, 0 if matrix_moments is None else int(matrix_moments.tokens))
        new_pieces = _quantize_matrix(group.sites, formats, index, matrix_moments, method, spec, drift)
        for site_pieces, new in zip(pieces, new_pieces, strict=True):
            site_pieces.append(new)
    weights = [
        join_weight(site_pieces, site, fmt) for site_pieces, site, fmt in zip(pieces, group.sites, formats, strict=True)
    ]
    layers = [
        searched_layer(site_pieces, site, weight, note)
        for site_pieces, site, weight, note in zip(pieces, group.sites, weights, notes, strict=True)
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
    # Siblings of one format are one array: a search runs once for all, and formats with a scale per weight share it.
    by_format = _sites_by_format(sites, formats)
    parts = [_format_part(siblings, fmt, index) for fmt, siblings in by_format.items()]
    targets = None
    if drift is not None and moments is not None:
        outputs = dict(zip(sites, drift.outputs, strict=True))
        targets = [
            _target(w, siblings, drift, outputs, moments, spec)
            for (w, _), siblings in zip(parts, by_format.values(), strict=True)
        ]
    widths = [[site.c_out for site in siblings] for siblings in by_format.values()]
    choices, errors = keep_better(parts, widths, moments, method, spec, targets)
    # Each site gets its own columns back, in the order in which they were concatenated.
    pieces: dict[Site, Piece] = {}
    for (fmt, siblings), choice, error in zip(by_format.items(), choices, errors, strict=True):
        stop = 0
        for site in siblings:
            start, stop = stop, stop + site.c_out
            pieces[site] = piece(choice, error, site, slice(start, stop), fmt, unseen)
    return [pieces[site] for site in sites]


def _note(site: Site, method: Method) -> str:
    """Why the method does less to a weight than to others; "" where it does not."""
    if not method.needs_data:  # it rounds all of them to nearest
        return ""
    reasons = []
    if site.nested and (less := _less(site, method)):
        inside = "in a subgraph" if len(site.nested) == len(site.nodes) else "in a subgraph too"
        reasons.append(f"{inside}: {less}")
    if site.has_table and (less := _less(site, method)):
        reasons.append(f"a table of Gather{' too' if site.activation_values else ''}: {less}")
    if site.kernel and site.activation_values:
        size = 4 * site.count * site.c_in**2 / 1e9
        if not site.activations:
            reasons.append(f"the moments of its patches would take {size:.1f} GB: rounded to nearest")
        elif method.scales and not site.nested:
            reasons.append("a kernel of Conv: its channels are not scaled")
    return "; ".join(reasons)


def _less(site: Site, method: Method) -> str:
    """What a weight of a table or a subgraph lacks; "" where the method does all to it."""
    if not site.activation_values:
        return "rounded to nearest"
    return "not scaled" if method.scales else ""


def _sites_by_format(sites: Sequence[Site], formats: Sequence[WeightFormat]) -> dict[WeightFormat, list[Site]]:
    by_format: dict[WeightFormat, list[Site]] = {}
    for site, fmt in zip(sites, formats, strict=True):
        by_format.setdefault(fmt, []).append(site)
    return by_format


def _format_part(sites: Sequence[Site], fmt: WeightFormat, index: int) -> Part:
    w = jnp.asarray(_concatenated_columns(sites, index))
    return w, fmt.of_weights(str(w.dtype))


def _concatenated_columns(sites: Sequence[Site], index: int) -> np.ndarray:
    """The sites' columns in one array [c_in, sum of c_out].

    Sites are read one after the other, so that only one of them is in memory twice.
    """
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
    w: jax.Array,
    sites: Sequence[Site],
    drift: Drift,
    outputs: Mapping[Site, jax.Array | None],
    moments: Moments,
    spec: MethodSpec,
) -> jax.Array:
    """The weights [c_in, sum of c_out] that correct the drift, in place of ``w``; see `corrected_target`.

    A site without an output drift corrects the drift of its input alone.
    """
    ridge = spec.ridge / int(moments.tokens)
    drift_out = None
    if any(outputs[site] is not None for site in sites):
        pairs = [(site, outputs[site]) for site in sites]
        columns = [jnp.zeros((site.c_in, site.c_out)) if drifted is None else drifted for site, drifted in pairs]
        drift_out = jnp.concatenate(columns, axis=1)

    def target(w: jax.Array, drift_out: jax.Array | None) -> jax.Array:
        return corrected_target(w, moments.h, drift.input, drift_out, ridge)

    return map_columns(target, w, drift_out, anchor=0)
