"""Quantize the sibling weights of one activation together, and take the result apart again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.awq import IDENTITY
from jaxq.formats import WeightFormat
from jaxq.forms.weight import Arrays, StoredWeight
from jaxq.graph import Group, Site
from jaxq.methods import ROUND_TO_NEAREST, Choice, Errors, Method, MethodSpec, Part, choose, find_method, measure
from jaxq.packing import pack_int4
from jaxq.results import Layer
from jaxq.statistics import Moments


@dataclass(frozen=True, eq=False)
class GroupResult:
    """What became of a group.

    Attributes:
        group: The group.
        weights, layers: One of each per site, in the group's order.
        s: Factor of the input channels [c_in], float32.
        scaled: ``s`` is not all ones: the activation has to be divided by it.
        tokens: Tokens behind the moments.
    """

    group: Group
    weights: tuple[StoredWeight, ...]
    layers: tuple[Layer, ...]
    s: np.ndarray
    scaled: bool
    tokens: int


def quantize_group(
    group: Group, formats: Sequence[WeightFormat], moments: Moments | None, spec: MethodSpec
) -> GroupResult:
    """Runs the method on the group's weights, those of one format side by side.

    Args:
        group: Sites that read one activation, or one site that reads several or none.
        formats: The format of each site.
        moments: Moments of the activation, if there are any.
        spec: The method; where several activations are read, or Gather or a subgraph reads a weight too, one that
            scales none stands in for it, and where no activation is read, round to nearest.
    """
    method = find_method(spec.name)
    if not all(site.can_scale for site in group.sites):
        method = replace(method, scales=False)
    if not group.activations:
        method, moments = ROUND_TO_NEAREST, None
    lots = _lots(group.sites, formats)
    parts = [_part(lot, fmt) for fmt, lot in lots.items()]
    choices, errors = _decide(parts, moments, method, spec)
    stored: dict[Site, tuple[StoredWeight, Layer]] = {}
    for (_, fmt), lot, choice, error in zip(parts, lots.values(), choices, errors, strict=True):
        stop = 0
        for site in lot:
            start, stop = stop, stop + site.c_out
            weight = _stored(choice, site, slice(start, stop), fmt)
            stored[site] = weight, _layer(group, site, weight, choice, error, slice(start, stop))
    weights, layers = zip(*(stored[site] for site in group.sites), strict=True)
    scaled = float(choices[0].alpha) != IDENTITY
    tokens = int(moments.tokens) if moments else 0
    return GroupResult(group, weights, layers, np.asarray(choices[0].s), scaled, tokens)


def _lots(sites: Sequence[Site], formats: Sequence[WeightFormat]) -> dict[WeightFormat, list[Site]]:
    lots: dict[WeightFormat, list[Site]] = {}
    for site, fmt in zip(sites, formats, strict=True):
        lots.setdefault(fmt, []).append(site)
    return lots


def _part(sites: Sequence[Site], fmt: WeightFormat) -> Part:
    arrays = [site.array() for site in sites]
    w = jnp.asarray(np.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0])
    return w, fmt.with_scale_dtype(str(w.dtype))


def _decide(
    parts: Sequence[Part], moments: Moments | None, method: Method, spec: MethodSpec
) -> tuple[list[Choice], list[Errors]]:
    """The method's choices and their errors; plain rounding's in their place if its output error is smaller.

    Searches look at a sample of columns or at blocks one by one; this comparison is over all columns and tokens.
    """
    choices = choose(method, parts, moments, spec)
    errors = [measure(w, choice, moments, fmt) for (w, fmt), choice in zip(parts, choices, strict=True)]
    if moments is None or sum(_sum(e.output) for e in errors) <= sum(_sum(e.output_rtn) for e in errors):
        return choices, errors
    choices = choose(ROUND_TO_NEAREST, parts, None, spec)
    return choices, [measure(w, choice, moments, fmt) for (w, fmt), choice in zip(parts, choices, strict=True)]


def _sum(per_column: jax.Array | None) -> float:
    return float(np.asarray(per_column).sum(dtype=np.float64))


def _stored(choice: Choice, site: Site, columns: slice, fmt: WeightFormat) -> StoredWeight:
    quantized = choice.quantized
    codes = quantized.q[:, columns]
    arrays = Arrays(
        codes=np.asarray(pack_int4(codes) if fmt.code_bits == 4 else codes),
        s=np.asarray(quantized.s[:, columns]),
        zp=None if quantized.zp is None else np.asarray(quantized.zp[:, columns]),
        s2=None if quantized.s2 is None else np.asarray(quantized.s2),
    )
    return StoredWeight.of(arrays, (site.c_in, site.c_out), fmt)


def _layer(group: Group, site: Site, weight: StoredWeight, choice: Choice, errors: Errors, columns: slice) -> Layer:
    loss, loss_rtn, output_energy = (
        _total(e, columns) for e in (errors.output, errors.output_rtn, errors.output_energy)
    )
    noise, energy = _total(errors.weight, columns), _total(errors.weight_energy, columns)
    ratio = np.asarray(choice.clip_ratio[:, columns])
    alpha = float(choice.alpha)
    return Layer(
        name=site.name,
        nodes=tuple(str(node.name) for node in site.nodes),
        activation=group.name,
        c_in=site.c_in,
        c_out=site.c_out,
        dtype=weight.fmt.dtype,
        block_size=weight.fmt.block_size,
        nbytes=weight.nbytes,
        loss=loss,
        loss_rtn=loss_rtn,
        relative_output_error=float(np.sqrt(loss / output_energy)) if loss is not None and output_energy else None,
        sqnr_db=float(10 * np.log10(energy / noise)) if energy and noise else None,
        alpha=None if alpha == IDENTITY else round(alpha, 6),
        fold="",
        clip_mean=float(ratio.mean()),
        clip_min=float(ratio.min()),
        clip_share=float((ratio < 1).mean()),
        note=_note(site),
    )


def _note(site: Site) -> str:
    parts = []
    if site.nested:
        inside = "in a subgraph" if len(site.nested) == len(site.nodes) else "in a subgraph too"
        parts.append(f"{inside}: {'not scaled' if site.activations else 'rounded to nearest'}")
    if site.has_table:
        parts.append("a table of Gather" + (" too: not scaled" if site.activations else ": rounded to nearest"))
    return "; ".join(parts)


def _total(per_column: object, columns: slice) -> float | None:
    return None if per_column is None else float(np.asarray(per_column)[columns].sum(dtype=np.float64))
