"""Quantize the sibling weights of one activation together, and take the result apart again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.drift import Drift, corrected_target
from jaxq.formats import WeightFormat
from jaxq.forms.weight import StoredWeight
from jaxq.graph import Group, Site
from jaxq.methods import ROUND_TO_NEAREST, Choice, Errors, Method, MethodSpec, Part, choose, find_method, measure
from jaxq.results import Layer
from jaxq.stacks import Piece, join_weight, layer_of, piece
from jaxq.statistics import Moments

MomentsOf = Callable[[int], Moments]
"""Gives the moments of what a matrix multiplies, by its number; read anew each time."""


@dataclass(frozen=True, eq=False)
class GroupResult:
    """What became of a group.

    Attributes:
        group: The group.
        weights, layers: One of each per site, in the group's order.
        s: Factor of the input channels [c_in], of several matrices [matrices, c_in], float32.
        scaled: ``s`` is not all ones: the activation has to be divided by it.
        tokens: Tokens behind the moments; of several matrices, the most that one has.
    """

    group: Group
    weights: tuple[StoredWeight, ...]
    layers: tuple[Layer, ...]
    s: np.ndarray
    scaled: bool
    tokens: int


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
    method = find_method(spec.name)
    notes = [_note(site, method) for site in group.sites]
    if not all(site.can_scale for site in group.sites):
        method = replace(method, scales=False)
    if not group.readings:
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
        layer_of(made, site, weight, group.name, note)
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
        targets = [
            _target(w, lot, drift, sites, moments, spec) for (w, _), lot in zip(parts, lots.values(), strict=True)
        ]
    choices, errors = _decide(parts, moments, method, spec, targets)
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
        parts.append(f"{inside}: {'not scaled' if site.activations else 'rounded to nearest'}")
    if site.has_table:
        parts.append("a table of Gather" + (" too: not scaled" if site.activations else ": rounded to nearest"))
    if site.kernel and site.activations and method.needs_data:
        size = 4 * site.count * site.c_in**2 / 1e9
        if not site.readings:
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
    return w, fmt.with_scale_dtype(str(w.dtype))


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
    return corrected_target(w, moments.h, drift.input, jnp.concatenate(columns, axis=1), spec.ridge)


def _decide(
    parts: Sequence[Part],
    moments: Moments | None,
    method: Method,
    spec: MethodSpec,
    targets: Sequence[jax.Array] | None = None,
) -> tuple[list[Choice], list[Errors]]:
    """The method's choices and their errors; plain rounding's in their place if its output error is smaller.

    Searches look at a sample of columns or at blocks one by one; this comparison is over all columns and tokens. With
    targets the method comes near these, and errors are those against them; plain rounding rounds the weights.
    """
    wanted = parts if targets is None else [(t, fmt) for t, (_, fmt) in zip(targets, parts, strict=True)]
    choices = choose(method, wanted, moments, spec)
    errors = _measured(parts, choices, moments, targets)
    if moments is None or sum(_sum(e.output) for e in errors) <= sum(_sum(e.output_rtn) for e in errors):
        return choices, errors
    choices = choose(ROUND_TO_NEAREST, parts, None, spec)
    return choices, _measured(parts, choices, moments, targets)


def _measured(
    parts: Sequence[Part], choices: Sequence[Choice], moments: Moments | None, targets: Sequence[jax.Array] | None
) -> list[Errors]:
    each = targets or [None] * len(parts)
    return [
        measure(w, choice, moments, fmt, target) for (w, fmt), choice, target in zip(parts, choices, each, strict=True)
    ]


def _sum(per_column: jax.Array | None) -> float:
    return float(np.asarray(per_column).sum(dtype=np.float64))
