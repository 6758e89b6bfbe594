"""From an ONNX file to its quantized copy: sites, moments, method, form, file. No printing, no Hydra."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from jaxq.capture import Batch, WindowRun, capture_moments
from jaxq.edit import rename_doubles
from jaxq.errors import JaxqError
from jaxq.fold import Fold, divide_vectors, divided_vectors, find_fold, insert_division
from jaxq.forms import Form
from jaxq.forms.nodes import is_shared
from jaxq.forms.weight import StoredWeight
from jaxq.graph import Declined, Group, Site, find_sites, prepare, sibling_groups, unmatched
from jaxq.groups import GroupResult, quantize_group
from jaxq.job import Job, check_job, useless_patterns
from jaxq.model_file import data_files, data_path, file_bytes, hash_model, load_model, raise_opset, save_model
from jaxq.present import ALREADY, PART
from jaxq.progress import Progress, silent
from jaxq.results import Clock, Layer, Outcome
from jaxq.statistics import Moments, mean_moments
from jaxq.store import MomentStore, hash_arrays

# Groups searched at a time: one compiles or reads while the other computes.
_WORKERS = 2


def quantize_model(job: Job, batches: Sequence[Batch] = (), progress: Progress = silent) -> Outcome:
    """Writes the quantized copy of a model.

    Args:
        job: What to do.
        batches: Calibration data; may be empty for methods that need none.
        progress: Told of each step.

    Returns:
        What was done to every weight, and what it took.

    Raises:
        JaxqError: the input is bad; nothing is written then.
    """
    form = check_job(job, bool(batches))
    clock = Clock()
    with clock.phase("load"):
        model = load_model(job.source)
        model_hash = hash_model(job.source, model)
        sources = [job.source, *data_files(job.source, model)]
        _refuse_overwriting(sources, job.target)
        source_bytes = sum(p.stat().st_size for p in sources)
        raise_opset(model, form.opset, form.ir_version)
        prepare(model)
        gather_axis = None if job.gather is None else job.gather.positive_axis
        sites, declined = find_sites(model.graph, job.exclude, gather_axis)
        useless = [*unmatched(model.graph, job.exclude), *useless_patterns(job, sites)]
        if not sites:
            raise JaxqError(f"model {str(job.source)!r} {_nothing_left(declined)}")
        groups = sibling_groups(sites)
        quantized_bytes = sum(_nbytes(site) for site in sites)
    data_hash = hash_batches(batches)
    store = MomentStore(job.cache, model_hash, data_hash)
    with clock.phase("calibrate"):
        found, windows = _calibrate(model, groups, batches, store, job, progress)
    with clock.phase("search"):
        results = _search(groups, store if batches else None, job, progress)
    with clock.phase("write"):
        layers = _write(model, results, form, job)
    return Outcome(
        layers=layers,
        declined=tuple(declined),
        unmatched=tuple(useless),
        windows=tuple(windows),
        moments_found=found,
        tokens=max((result.tokens for result in results), default=0),
        model_hash=model_hash,
        data_hash=data_hash,
        source_bytes=source_bytes,
        target_bytes=file_bytes(job.target),
        quantized_bytes=quantized_bytes,
        weight_bytes=quantized_bytes + sum(d.nbytes for d in declined),
        bits_per_weight=8 * sum(x.nbytes for x in layers) / sum(x.c_in * x.c_out for x in layers),
        phases=tuple(clock.phases),
    )


def _refuse_overwriting(sources: Sequence[Path], target: Path) -> None:
    kept = {path.resolve() for path in sources}
    for path in (target, data_path(target)):
        if path.resolve() in kept:
            raise JaxqError(
                f"the target {str(path)!r} belongs to the source, which is never changed: give another path"
            )


def hash_batches(batches: Sequence[Batch]) -> str:
    """SHA-256 over data, padding masks included; "" for none."""
    if not batches:
        return ""
    return hash_arrays({**batch.feeds, **({} if batch.keep is None else {"/keep": batch.keep})} for batch in batches)


def _nothing_left(declined: Sequence[Declined]) -> str:
    """Why a model has no site."""
    codes = [d for d in declined if d.reason == ALREADY]
    others = [d for d in declined if d.reason not in (ALREADY, PART)]
    size = sum(d.nbytes for d in codes)
    if size > sum(d.nbytes for d in others):
        return f"is {ALREADY}: {len(codes)} tensors of codes, {size / 1e6:.2f} MB; no float weight can be quantized"
    reasons = dict.fromkeys(d.reason for d in sorted(others, key=lambda d: -d.nbytes))
    return f"has no weight that can be quantized: {'; '.join(list(reasons)[:3]) or 'it holds no float weights'}"


def _nbytes(site: Site) -> int:
    assert site.weight.const_value is not None
    return site.weight.const_value.nbytes


def _calibrate(
    model: ir.Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    store: MomentStore,
    job: Job,
    progress: Progress,
) -> tuple[int, list[WindowRun]]:
    """Sees to it that the store has the moments of every group; returns how many it had, and what ran."""
    if not batches:
        return 0, []
    wanted = list(dict.fromkeys(value for group in groups for value in group.activations))
    missing = [value for value in wanted if str(value.name) not in store]
    windows = capture_moments(model, missing, batches, store.put, job.window_bytes, job.providers, progress)
    return len(wanted) - len(missing), windows


def _search(groups: Sequence[Group], store: MomentStore | None, job: Job, progress: Progress) -> list[GroupResult]:
    advance = progress("search", len(groups))

    def quantize(group: Group) -> GroupResult:
        formats = [job.format_of(site) for site in group.sites]
        result = quantize_group(group, formats, _moments(group, store), job.method)
        advance()
        return result

    with ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(quantize, groups))


def _moments(group: Group, store: MomentStore | None) -> Moments | None:
    if store is None or not group.activations:
        return None
    return mean_moments([store.get(str(value.name)) for value in group.activations])


def _write(model: ir.Model, results: Sequence[GroupResult], form: Form, job: Job) -> tuple[Layer, ...]:
    """Puts the results into the graph and writes the file."""
    stored = {site: w for result in results for site, w in zip(result.group.sites, result.weights, strict=True)}
    folds = {result: _find_fold(result, stored) for result in results if result.scaled}
    divisors = {weight: result.s for result, fold in folds.items() if fold for weight in fold.weights}
    if form.domain:
        model.opset_imports.setdefault(form.domain, 1)
    layers, graphs = [], list(model.graphs())
    for result in results:
        where = _divide_activation(model.graph, result, folds[result]) if result.scaled else ""
        for site, weight, layer in zip(result.group.sites, result.weights, result.layers, strict=True):
            divisor = divisors.get(site.weight)
            before = {name for graph in graphs for name in graph.initializers}
            form.write(model.graph, site, weight if divisor is None else weight.divide_columns(divisor))
            held = _new_bytes(graphs, before) if form.scaled else weight.nbytes
            layers.append(replace(layer, fold=where, nbytes=held))
    rename_doubles(model)
    save_model(model, job.target, job.external_above)
    return tuple(layers)


def _new_bytes(graphs: Sequence[ir.Graph], before: Collection[str]) -> int:
    """Bytes of a weight that was written: all initializers that are new, but for those that weights share."""
    held = (item for graph in graphs for item in graph.initializers.items())
    new = (v.const_value for name, v in held if name not in before and not is_shared(name))
    return sum(tensor.nbytes for tensor in new if tensor is not None)


def _find_fold(result: GroupResult, stored: Mapping[Site, StoredWeight]) -> Fold | None:
    fold = find_fold(result.group, stored)
    weights = {site.weight: weight for site, weight in stored.items()}
    if fold is None or not all(weights[w].can_divide_columns(result.s) for w in fold.weights):
        return None
    return fold if all(np.isfinite(v).all() for v in divided_vectors(fold, result.s)) else None


def _divide_activation(graph: ir.Graph, result: GroupResult, fold: Fold | None) -> str:
    if fold is None:
        insert_division(graph, result.group, result.s)
        return "Mul"
    divide_vectors(graph, fold, result.s)
    return str(fold)
