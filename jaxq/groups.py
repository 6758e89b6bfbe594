"""Quantize the sibling weights of one activation together, and take the result apart again."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.awq import IDENTITY
from jaxq.formats import IntegerFormat
from jaxq.forms.weight import StoredWeight
from jaxq.graph import Group, Site
from jaxq.methods import Choice, Errors, Method, MethodSpec, find_method, measure, round_to_nearest
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


def quantize_group(group: Group, moments: Moments | None, spec: MethodSpec) -> GroupResult:
    """Runs the method on the group's weights side by side.

    Args:
        group: Sites that read one activation, or one site that reads several.
        moments: Moments of the activation, if there are any.
        spec: The method; where several activations are read, one that scales none stands in for it.
    """
    method = find_method(spec.name)
    if method.unscaled and len(group.activations) > 1:
        method = find_method(method.unscaled)
    arrays = [site.array() for site in group.sites]
    spec = replace(spec, fmt=replace(spec.fmt, scale_dtype=str(arrays[0].dtype)))
    w = jnp.asarray(np.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0])
    choice, errors = _decide(w, moments, method, spec)
    stops = np.cumsum([site.c_out for site in group.sites])
    columns = [slice(int(stop) - site.c_out, int(stop)) for site, stop in zip(group.sites, stops, strict=True)]
    weights = tuple(_stored(choice, site, cut, spec.fmt) for site, cut in zip(group.sites, columns, strict=True))
    layers = tuple(
        _layer(group, site, weight, choice, errors, cut)
        for site, weight, cut in zip(group.sites, weights, columns, strict=True)
    )
    scaled = float(choice.alpha) != IDENTITY
    return GroupResult(group, weights, layers, np.asarray(choice.s), scaled, int(moments.tokens) if moments else 0)


def _decide(w: jax.Array, moments: Moments | None, method: Method, spec: MethodSpec) -> tuple[Choice, Errors]:
    """The method's choice and its errors; plain rounding's in their place if its output error is smaller.

    Searches look at a sample of columns or at blocks one by one; this comparison is over all columns and tokens.
    """
    choice = method.choose(w, moments, spec)
    errors = measure(w, choice, moments, spec.fmt)
    if errors.output is None or errors.output_rtn is None or _sum(errors.output) <= _sum(errors.output_rtn):
        return choice, errors
    choice = round_to_nearest(w, None, spec)
    return choice, measure(w, choice, moments, spec.fmt)


def _sum(per_column: jax.Array) -> float:
    return float(np.asarray(per_column).sum(dtype=np.float64))


def _stored(choice: Choice, site: Site, columns: slice, fmt: IntegerFormat) -> StoredWeight:
    quantized = choice.quantized
    codes = quantized.q[:, columns]
    packed = np.asarray(pack_int4(codes) if fmt.num_bits <= 4 else codes)
    zp = None if quantized.zp is None else np.asarray(quantized.zp[:, columns])
    return StoredWeight(packed, np.asarray(quantized.s[:, columns]), zp, (site.c_in, site.c_out), fmt)


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
        num_bits=weight.fmt.num_bits,
        block_size=weight.fmt.block_size,
        nbytes=weight.nbytes * len(site.nodes),
        loss=loss,
        loss_rtn=loss_rtn,
        relative_output_error=float(np.sqrt(loss / output_energy)) if loss is not None and output_energy else None,
        sqnr_db=float(10 * np.log10(energy / noise)) if energy and noise else None,
        alpha=None if alpha == IDENTITY else round(alpha, 6),
        fold="",
        clip_mean=float(ratio.mean()),
        clip_min=float(ratio.min()),
        clip_share=float((ratio < 1).mean()),
    )


def _total(per_column: object, columns: slice) -> float | None:
    return None if per_column is None else float(np.asarray(per_column)[columns].sum(dtype=np.float64))
