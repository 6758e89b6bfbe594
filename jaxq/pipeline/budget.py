"""Choose formats for all weights under a budget of bits: losses of each weight in each format, and the choice."""

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
"""Number of evenly spaced columns of a matrix on which formats are compared."""

MATRICES = 8
"""Number of evenly spaced matrices of a stack on which formats are compared."""

Formats = Mapping[Site, WeightFormat]


def given_formats(groups: Sequence[Group], job: Job) -> Formats:
    """The formats without a budget: those of the method, the rules and the tables."""
    return {site: job.format_of(site) for group in groups for site in group.sites}


@dataclass(frozen=True)
class Losses:
    """Bytes and losses of a weight.

    Attributes:
        options: Bytes and loss in each format, in the order of `Job.formats_of`.
        energy: `typical_energy` of its product; None without moments of its activation.
    """

    options: tuple[Option, ...]
    energy: float | None


def check_budget(groups: Sequence[Group], job: Job) -> float | None:
    """Refuses a budget that is too small for any choice.

    Returns:
        The largest number of bits per weight that any choice takes, over all weights; None without a budget.

    Raises:
        JaxqError: it is too small.
    """
    if job.budget is None:
        return None
    sites = [site for group in groups for site in group.sites]
    sizes = [[_nbytes(site, fmt, job.form) for fmt in job.formats_of(site)] for site in sites]
    min_bits, max_bits = (8 * sum(map(extreme, sizes)) / _size(sites) for extreme in (min, max))
    if min_bits > job.budget.bits_per_weight:
        raise JaxqError(
            f"method.bits_per_weight is {job.budget.bits_per_weight:g}: this model's weights take "
            f"{min_bits:.3f} bits at least in form {job.form.name!r}; give that or more"
        )
    return max_bits


def _size(sites: Sequence[Site]) -> int:
    return sum(site.c_in * site.columns for site in sites)


def chosen_formats(groups: Sequence[Group], losses: Mapping[Site, Losses], job: Job) -> Formats:
    """The formats with the least sum of losses that keep to the budget.

    Args:
        groups: All weights.
        losses: Bytes and losses of each weight.
        job: A job with a budget that `check_budget` accepts.
    """
    assert job.budget is not None
    sites = [site for group in groups for site in group.sites]
    factors = sensitivities(sites, {site: e for site in sites if (e := losses[site].energy) is not None})
    options = [_weighted(losses[site].options, factors[site], _size([site])) for site in sites]
    chosen = allocate(options, int(job.budget.bits_per_weight * _size(sites) / 8))
    return {site: job.formats_of(site)[i] for site, i in zip(sites, chosen, strict=True)}


def _weighted(options: Sequence[Option], factor: float, size: int) -> list[Option]:
    """A weight's options, with losses that are comparable between weights.

    An option's error ``e`` becomes ``size sqrt(factor e_0 / size) e / e_0``, where ``e_0`` is the largest error of the
    options. That is the geometric mean of two estimates: ``factor e``, and ``size e / e_0``, which trusts no factor.
    The factors are rough; see docs/decisions for the figures.
    """
    largest = max(o.loss for o in options) or 1.0
    return [replace(o, loss=size * (factor * largest / size) ** 0.5 * o.loss / largest) for o in options]


def losses_of(group: Group, moments: MomentsOf | None, job: Job) -> dict[Site, Losses]:
    """Bytes and loss of each weight of a group, in each of its formats.

    The loss is the `typical_error` of the outputs of `COLUMNS` columns. Block scales are searched if the method
    searches them. If the method is GPTQ, the loss is multiplied by the share of the error that GPTQ leaves. Without
    moments the error of the weights stands in for that of the outputs.
    """
    method = job.method.steps
    search = method.needs_data and (method.searches or job.method.block_scales)
    errors_of = {site: _Errors([[] for _ in job.formats_of(site)], []) for site in group.sites}
    for index in np.linspace(0, group.count - 1, min(MATRICES, group.count)).astype(int):
        matrix = None if moments is None else moments(int(index))
        h = matrix.h if matrix is not None and int(matrix.tokens) else None
        share = 1.0
        if matrix is not None and h is not None and method.compensates:
            # GPTQ works on the shrunk moment: with few tokens it compensates for less than the raw moment suggests.
            share = np.float32(compensated_share(shrunk(h, matrix.tokens, job.method.shrinkage), job.method.damping))
        for site, errors in errors_of.items():
            w = jnp.asarray(site.array(int(index)))
            w = sample_columns(w, min(COLUMNS, w.shape[1]))
            if h is not None:
                errors.energies.append(np.asarray(output_error(w, h)))
            for fmt, relative in zip(job.formats_of(site), errors.relative, strict=True):
                searched = search and h is not None and fmt.code_bits == 4  # 8 bits lose next to nothing
                stored_fmt = fmt.of_weights(str(w.dtype))
                relative.append(share * np.asarray(_errors(w, h, stored_fmt, searched, job.method.damping)))
    return {site: _losses(site, errors, job) for site, errors in errors_of.items()}


@dataclass(frozen=True)
class _Errors:
    """Relative errors of the compared columns, a list for each format, and the energies of the columns' products."""

    relative: list[list[np.ndarray]]
    energies: list[np.ndarray]


def _losses(site: Site, errors: _Errors, job: Job) -> Losses:
    pairs = zip(job.formats_of(site), errors.relative, strict=True)
    options = tuple(
        Option(_nbytes(site, fmt, job.form), typical_error(np.concatenate(relative))) for fmt, relative in pairs
    )
    energy = None
    if errors.energies:
        energies = np.concatenate(errors.energies)
        energy = typical_energy(energies) * site.c_out / energies.size
    return Losses(options, energy)


def _errors(w: jax.Array, h: jax.Array | None, fmt: WeightFormat, search: bool, damping: float) -> jax.Array:
    scales = search_block_scales(w, damp(h, damping), fmt) if search and h is not None else fmt.plain_scales(w)
    return relative_errors(_rounding_error(w, scales, fmt), w, h)


@partial(jax.jit, static_argnames="fmt")
def _rounding_error(w: jax.Array, scales: Scales, fmt: WeightFormat) -> jax.Array:
    return fmt.dequantize(fmt.encoded(w, scales)) - w.astype(jnp.float32)


def _nbytes(site: Site, fmt: WeightFormat, form: Form) -> int:
    """Bytes of a weight in the file."""
    assert site.weight.dtype is not None
    stored_fmt = fmt.of_weights(str(site.weight.dtype.numpy()))
    return form.nbytes(site, StoredWeight.planned((site.c_in, site.columns), stored_fmt))
