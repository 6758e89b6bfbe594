"""Formats for all weights under a budget of bits: what each loses in each format, and which ones to take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import JaxqError
from jaxq.formats.base import Scales
from jaxq.formats.registry import WeightFormat
from jaxq.forms.form import Form
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.sites import Group, Site
from jaxq.methods.allocation import Option, allocate, relative_errors, typical_error
from jaxq.methods.awq import sample_columns
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.gptq import compensated_share, damp
from jaxq.numerics.moments import MomentsOf, output_error, shrunk
from jaxq.pipeline.job import Job
from jaxq.pipeline.sensitivity import sensitivities, typical_energy

COLUMNS = 64
"""Evenly spaced columns of a matrix on which formats are compared."""

MATRICES = 8
"""Evenly spaced matrices of a stack."""

Formats = Mapping[Site, WeightFormat]


def given_formats(groups: Sequence[Group], job: Job) -> Formats:
    """The formats that method, rules and ``gather`` say."""
    return {site: job.format_of(site) for group in groups for site in group.sites}


@dataclass(frozen=True)
class Losses:
    """What is known of a weight.

    Attributes:
        options: What its formats, in the order of `Job.formats_of`, take and lose.
        energy: `typical_energy` of its product; None where nothing is known of what it multiplies.
    """

    options: tuple[Option, ...]
    energy: float | None


def check_budget(groups: Sequence[Group], job: Job) -> float | None:
    """Refuses a budget that is too small for any choice.

    Returns:
        The most bits a weight that any choice takes, all weights together; None without a budget.

    Raises:
        JaxqError: it is too small.
    """
    if job.budget is None:
        return None
    sites = [site for group in groups for site in group.sites]
    each = [[_nbytes(site, fmt, job.form) for fmt in job.formats_of(site)] for site in sites]
    least, most = (8 * sum(map(extreme, each)) / _size(sites) for extreme in (min, max))
    if least > job.budget.bits_per_weight:
        raise JaxqError(
            f"method.bits_per_weight is {job.budget.bits_per_weight:g}: this model's weights take "
            f"{least:.3f} bits at least in form {job.form.name!r}; give that or more"
        )
    return most


def _size(sites: Sequence[Site]) -> int:
    return sum(site.c_in * site.columns for site in sites)


def chosen_formats(groups: Sequence[Group], losses: Mapping[Site, Losses], job: Job) -> Formats:
    """The formats with the least sum of losses that keep to the budget.

    Args:
        groups: All weights.
        losses: What is known of each.
        job: What to do; it has a budget, see `check_budget`.
    """
    assert job.budget is not None
    sites = [site for group in groups for site in group.sites]
    factors = sensitivities(sites, {site: e for site in sites if (e := losses[site].energy) is not None})
    options = [_weighted(losses[site].options, factors[site], _size([site])) for site in sites]
    chosen = allocate(options, int(job.budget.bits_per_weight * _size(sites) / 8))
    return {site: job.formats_of(site)[i] for site, i in zip(sites, chosen, strict=True)}


def _weighted(options: Sequence[Option], factor: float, size: int) -> list[Option]:
    """A weight's options with losses that compare with other weights'.

    ``size sqrt(factor e_0 / size) e / e_0`` of an error ``e``, ``e_0`` the greatest of the options': half way, in
    logarithms, between what the factors say and that only the share of the error that is left counts, by the size.
    Factors are rough; on development text this was better than they alone at 4.5 bits, and worse at 5.
    """
    most = max(o.loss for o in options) or 1.0
    return [replace(o, loss=size * (factor * most / size) ** 0.5 * o.loss / most) for o in options]


def losses_of(group: Group, moments: MomentsOf | None, job: Job) -> dict[Site, Losses]:
    """What each weight of a group takes and loses in each of its formats.

    The loss is the `typical_error` of `COLUMNS` columns, with searched block scales if the method searches them, times
    the share that GPTQ leaves if it is GPTQ; that of the weights instead of their outputs where nothing is known of
    what they multiply.
    """
    method = job.method.steps
    search = method.needs_data and (method.searches or job.method.block_scales)
    found = {site: _Errors([[] for _ in job.formats_of(site)], []) for site in group.sites}
    for index in np.linspace(0, group.count - 1, min(MATRICES, group.count)).astype(int):
        own = None if moments is None else moments(int(index))
        h = own.h if own is not None and int(own.tokens) else None
        share = 1.0
        if own is not None and h is not None and method.compensates:
            # As GPTQ sees the moment: of few tokens' coupling it makes up for less than these show.
            share = np.float32(compensated_share(shrunk(h, own.tokens, job.method.shrinkage), job.method.damping))
        for site, errors in found.items():
            w = jnp.asarray(site.array(int(index)))
            w = sample_columns(w, min(COLUMNS, w.shape[1]))
            if h is not None:
                errors.energies.append(np.asarray(output_error(w, h)))
            for fmt, each in zip(job.formats_of(site), errors.relative, strict=True):
                searched = search and h is not None and fmt.code_bits == 4  # 8 bits lose next to nothing
                held = fmt.of_weights(str(w.dtype))
                each.append(share * np.asarray(_errors(w, h, held, searched, job.method.damping)))
    return {site: _losses(site, errors, job) for site, errors in found.items()}


@dataclass(frozen=True)
class _Errors:
    """Of the matrices that were looked at, and of these the columns that were: for each format, and the energies."""

    relative: list[list[np.ndarray]]
    energies: list[np.ndarray]


def _losses(site: Site, errors: _Errors, job: Job) -> Losses:
    pairs = zip(job.formats_of(site), errors.relative, strict=True)
    options = tuple(Option(_nbytes(site, fmt, job.form), typical_error(np.concatenate(each))) for fmt, each in pairs)
    energy = None
    if errors.energies:
        energies = np.concatenate(errors.energies)
        energy = typical_energy(energies) * site.c_out / energies.size
    return Losses(options, energy)


def _errors(w: jax.Array, h: jax.Array | None, fmt: WeightFormat, search: bool, damping: float) -> jax.Array:
    scales = search_block_scales(w, damp(h, damping), fmt) if search and h is not None else fmt.find_scales(w)
    return relative_errors(_rounding_error(w, scales, fmt), w, h)


@partial(jax.jit, static_argnames="fmt")
def _rounding_error(w: jax.Array, scales: Scales, fmt: WeightFormat) -> jax.Array:
    return fmt.dequantize(fmt.encoded(w, scales)) - w.astype(jnp.float32)


def _nbytes(site: Site, fmt: WeightFormat, form: Form) -> int:
    """Bytes in the file."""
    assert site.weight.dtype is not None
    held = fmt.of_weights(str(site.weight.dtype.numpy()))
    return form.nbytes(site, StoredWeight.planned((site.c_in, site.columns), held))
