"""Quantize the sibling weights of one activation together, and take the result apart again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.awq import IDENTITY
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
        pairs = zip(parts, lots.values(), strict=True)
        targets = [_target(w, lot, drift, sites, moments, spec) for (w, _), lot in pairs]
    widths = [[site.c_out for site in lot] for lot in lots.values()]
    choices, errors = _decide(parts, widths, moments, method, spec, targets)
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


def _decide(
    parts: Sequence[Part],
    widths: Sequence[Sequence[int]],
    moments: Moments | None,
    method: Method,
    spec: MethodSpec,
    targets: Sequence[jax.Array] | None = None,
) -> tuple[list[Choice], list[Errors]]:
    """The method's choices and their errors; plain rounding's in their place where its output error is smaller.

    Searches look at a sample of columns or at blocks one by one; this comparison is over all columns and tokens, weight
    by weight. Weights that were scaled share a factor with their siblings, and where block scales are over one scale of
    all columns, which is not that of plain rounding, they share that: these are kept or not together. With targets the
    method comes near these, and errors are those against them; plain rounding rounds the weights.
    """
    wanted = parts if targets is None else [(t, fmt) for t, (_, fmt) in zip(targets, parts, strict=True)]
    choices = choose(method, wanted, moments, spec)
    errors = _measured(parts, choices, moments, targets)
    if moments is None or method == ROUND_TO_NEAREST:
        return choices, errors
    if not any(each.any() for each in _lost(choices, errors, widths, [False] * len(parts))):
        return choices, errors
    plain = choose(ROUND_TO_NEAREST, parts, None, spec)
    together = [not _same_second(*each) for each in zip(choices, plain, strict=True)]
    lost = _lost(choices, errors, widths, together)
    if not any(each.any() for each in lost):
        return choices, errors
    choices = [_swapped(*each) for each in zip(choices, plain, lost, strict=True)]
    return choices, _measured(parts, choices, moments, targets)


def _same_second(choice: Choice, plain: Choice) -> bool:
    """Whether the scales of the blocks are over the same scale of the weight, if they are over one."""
    one, other = choice.quantized.s2, plain.quantized.s2
    return one is None or other is None or float(one) == float(other)


def _lost(
    choices: Sequence[Choice], errors: Sequence[Errors], widths: Sequence[Sequence[int]], together: Sequence[bool]
) -> list[np.ndarray]:
    """For each column of each part whether plain rounding does better on all that is kept or not together with it."""
    gains = [np.asarray(e.output_rtn, np.float64) - np.asarray(e.output, np.float64) for e in errors]
    if float(choices[0].alpha) != IDENTITY:
        better = sum(map(np.sum, gains)) >= 0  # false of NaN
        return [np.full(gain.size, not better) for gain in gains]
    lost = []
    for gain, whole, each in zip(gains, together, widths, strict=True):
        shares = [gain.size] if whole else list(each)
        better = np.add.reduceat(gain, np.cumsum([0, *shares[:-1]])) >= 0
        lost.append(np.repeat(~better, shares))
    return lost


def _swapped(choice: Choice, plain: Choice, lost: np.ndarray) -> Choice:
    """The columns of ``plain`` where the choice lost, with which a scale of all channels goes too."""
    if not lost.any():
        return choice
    if lost.all():
        return plain
    held = replace(choice.quantized, s2=plain.quantized.s2)
    quantized = jax.tree.map(lambda new, old: jnp.where(lost, new, old) if new.ndim else old, plain.quantized, held)
    return Choice(quantized, choice.s, choice.alpha, jnp.where(lost, plain.clip_ratio, choice.clip_ratio))


def _measured(
    parts: Sequence[Part], choices: Sequence[Choice], moments: Moments | None, targets: Sequence[jax.Array] | None
) -> list[Errors]:
    each = targets or [None] * len(parts)
    return [
        measure(w, choice, moments, fmt, target) for (w, fmt), choice, target in zip(parts, choices, each, strict=True)
    ]
