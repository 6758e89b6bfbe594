"""From an ONNX file to its quantized copy: sites, moments, method, form, file. No printing, no Hydra."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from jaxq.capture import Batch, WindowRun, capture_moments
from jaxq.errors import JaxqError
from jaxq.fold import Fold, divide_vectors, divided_vectors, find_fold, insert_division
from jaxq.forms import Form
from jaxq.forms.nodes import is_shared
from jaxq.forms.weight import StoredWeight
from jaxq.graph import Declined, Group, Site, find_sites, prepare, sibling_groups, unmatched
from jaxq.groups import GroupResult, MomentsOf, quantize_group
from jaxq.job import Job, check_job, split_held, useless_patterns
from jaxq.model_file import data_files, data_path, file_bytes, hash_model, load_model, raise_opset, save_model
from jaxq.progress import Progress, silent
from jaxq.reading import Reading
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
        sites, not_held = split_held(job, sites)
        declined += not_held
        useless = [*unmatched(model.graph, job.exclude), *useless_patterns(job, sites)]
        if not sites:
            raise JaxqError(f"model {str(job.source)!r} has no weight that can be quantized: {_reasons(declined)}")
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
        tokens=_tokens(results),
        model_hash=model_hash,
        data_hash=data_hash,
        source_bytes=source_bytes,
        target_bytes=file_bytes(job.target),
        quantized_bytes=quantized_bytes,
        weight_bytes=quantized_bytes + sum(d.nbytes for d in declined),
        bits_per_weight=8 * sum(x.nbytes for x in layers) / sum(x.size for x in layers),
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


def _reasons(declined: Sequence[Declined]) -> str:
    if not declined:
        return "it holds no float weights"
    reasons = dict.fromkeys(d.reason for d in sorted(declined, key=lambda d: -d.nbytes))
    return "; ".join(list(reasons)[:3])


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
    wanted = list(dict.fromkeys(reading for group in groups for reading in group.readings))
    missing = [reading for reading in wanted if not _is_stored(reading, store)]
    windows = capture_moments(model, missing, batches, store.put, job.window_bytes, job.providers, progress)
    return len(wanted) - len(missing), windows


def _is_stored(reading: Reading, store: MomentStore) -> bool:
    return reading.shared_key in store or all(key in store for key in reading.keys)


def _search(groups: Sequence[Group], store: MomentStore | None, job: Job, progress: Progress) -> list[GroupResult]:
    advance = progress("search", len(groups))

    def quantize(group: Group) -> GroupResult:
        formats = [job.format_of(site) for site in group.sites]
        result = quantize_group(group, formats, _moments(group, store), job.method)
        advance()
        return result

    with ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(quantize, groups))


def _moments(group: Group, store: MomentStore | None) -> MomentsOf | None:
    if store is None or not group.readings:
        return None

    def read(index: int) -> Moments:
        keys = [r.shared_key if r.shared_key in store else r.keys[index] for r in group.readings]
        return mean_moments([store.get(key) for key in keys])

    return read


def _tokens(results: Sequence[GroupResult]) -> int:
    """The most tokens that any weight saw; positions in images are tokens where there is nothing else."""
    kernels = [result for result in results if result.group.sites[0].kernel]
    return max((r.tokens for r in results if r not in kernels), default=max((r.tokens for r in kernels), default=0))


def _write(model: ir.Model, results: Sequence[GroupResult], form: Form, job: Job) -> tuple[Layer, ...]:
    """Puts the results into the graph and writes the file."""
    stored = {site: w for result in results for site, w in zip(result.group.sites, result.weights, strict=True)}
    folds = {result: _find_fold(result, stored) for result in results if result.scaled}
    divisors = {weight: result.s.ravel() for result, fold in folds.items() if fold for weight in fold.weights}
    if form.domain:
        model.opset_imports.setdefault(form.domain, 1)
    layers = []
    for result in results:
        where = _divide_activation(model.graph, result, folds[result]) if result.scaled else ""
        for site, weight, layer in zip(result.group.sites, result.weights, result.layers, strict=True):
            divisor = divisors.get(site.weight)
            before = set(model.graph.initializers)
            form.write(model.graph, site, weight if divisor is None else weight.divide_columns(divisor))
            held = _new_bytes(model.graph, before) if form.scaled else weight.nbytes
            layers.append(replace(layer, fold=where, nbytes=held))
    save_model(model, job.target, job.external_above)
    return tuple(layers)


def _new_bytes(graph: ir.Graph, before: Collection[str]) -> int:
    """Bytes of a weight that was written: all initializers that are new, but for those that weights share."""
    new = (v.const_value for name, v in graph.initializers.items() if name not in before and not is_shared(name))
    return sum(tensor.nbytes for tensor in new if tensor is not None)


def _find_fold(result: GroupResult, stored: Mapping[Site, StoredWeight]) -> Fold | None:
    fold = find_fold(result.group, stored)
    weights = {site.weight: weight for site, weight in stored.items()}
    if fold is None or not all(weights[w].can_divide_columns(result.s.ravel()) for w in fold.weights):
        return None
    return fold if all(np.isfinite(v).all() for v in divided_vectors(fold, result.s)) else None


def _divide_activation(graph: ir.Graph, result: GroupResult, fold: Fold | None) -> str:
    if fold is None:
        insert_division(graph, result.group, result.s)
        return "Mul"
    divide_vectors(graph, fold, result.s)
    return str(fold)
