"""From an ONNX file to its quantized copy: sites, moments, method, form, file. No printing, no Hydra."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import jax
import numpy as np
import onnx_ir as ir

from jaxq.calibration.capture import Calibration, WindowRun, capture_moments, naming_weights
from jaxq.calibration.moment_lookup import has_moments, moments_of
from jaxq.calibration.moment_store import MomentStore
from jaxq.files.hashing import hash_files
from jaxq.files.model_file import file_bytes, save_model
from jaxq.graph.activations import Activation
from jaxq.graph.sites import Group, Site
from jaxq.numerics.moments import Moments, MomentsOf
from jaxq.pipeline.budget import Formats, Losses, check_budget, chosen_formats, given_formats, losses_of
from jaxq.pipeline.clock import Clock
from jaxq.pipeline.compiled import release_programs
from jaxq.pipeline.group_search import WORKERS, GroupSearch, advance_by_weight, count_weights
from jaxq.pipeline.in_order import quantize_in_order
from jaxq.pipeline.job import Job, check_job, patterns_of_tables
from jaxq.pipeline.outcome import Outcome
from jaxq.pipeline.resume import ResultStore, RunState, run_state
from jaxq.pipeline.source import Source, open_source
from jaxq.pipeline.write import write_weights
from jaxq.progress import Progress, silent
from jaxq.runtime.batches import Batch, hash_batches
from jaxq.search.result import GroupResult
from jaxq.version import __version__


def quantize_model(
    job: Job,
    batches: Sequence[Batch] = (),
    progress: Progress = silent,
    notify: Callable[[str], None] | None = None,
    keep_state_until: ExitStack | None = None,
) -> Outcome:
    """Writes the quantized copy of a model.

    Args:
        job: The model, the method, the form, and everything else to do.
        batches: Calibration data; may be empty for methods that need none.
        progress: Notified of each step.
        notify: Called with sentences that matter during the run: whether it resumes a stopped one, for example.
        keep_state_until: Finished work stays on disk until this stack closes without an error, for callers that have
            more to do. Without a stack it stays until the file is written.

    Returns:
        A record of every weight, of time and of memory.

    Raises:
        JaxqError: the input is bad; nothing is written then.
    """
    release_programs()
    form = check_job(job, bool(batches))
    clock, notices = Clock(), list[str]()
    add_notice = notices.append if notify is None else _both(notices.append, notify)
    with clock.phase("load"):
        source = open_source(job, form)
        max_bits = check_budget(source.groups, job)
        model_hash = hash_files(source.files)
    data_hash = hash_batches(batches)
    store = MomentStore(job.cache, model_hash, data_hash) if batches else None
    for sentence in (*source.ties, *_useless_options(source.groups, max_bits, job)):
        add_notice(sentence)
    with ExitStack() as until_written:
        entered = run_state(job.cache, _identity(job), _content(job, model_hash, data_hash), add_notice)
        state = (until_written if keep_state_until is None else keep_state_until).enter_context(entered)
        with naming_weights(source.groups):
            quantized = _Steps(source, batches, store, state, job, clock, progress).run()
        with clock.phase("write"):
            layers = write_weights(source.model, quantized.results, form)
            save_model(source.model, job.target, job.external_above)
    return Outcome(
        layers=layers,
        skipped=source.skipped,
        unmatched=source.unmatched,
        notices=tuple(notices),
        windows=tuple(quantized.windows),
        moments_from_cache=quantized.moments_from_cache,
        tokens=_tokens(quantized.results),
        model_hash=model_hash,
        data_hash=data_hash,
        source_bytes=source.nbytes,
        target_bytes=file_bytes(job.target),
        quantized_source_bytes=source.quantized_source_bytes,
        weight_bytes=source.weight_bytes,
        bits_per_weight=8 * sum(x.nbytes for x in layers) / sum(x.size for x in layers),
        phases=tuple(clock.phases),
    )


def _useless_options(groups: Sequence[Group], max_bits: float | None, job: Job) -> Iterator[str]:
    """Sentences on options that change nothing: more bits than ``max_bits``, rules that match tables alone."""
    if max_bits is not None and job.budget is not None and max_bits < job.budget.bits_per_weight:
        asked = f"method.bits_per_weight is {job.budget.bits_per_weight:g}"
        yield f"{asked}: weights take {max_bits:.3f} at most in form {job.form.name!r}"
    for pattern in patterns_of_tables(job, [site for group in groups for site in group.sites]):
        yield f"the pattern {pattern!r} matches only tables of Gather: gather.dtype sets their dtype"


def _both(first: Callable[[str], None], second: Callable[[str], None]) -> Callable[[str], None]:
    """One function that calls two."""

    def notify(sentence: str) -> None:
        first(sentence)
        second(sentence)

    return notify


def _identity(job: Job) -> str:
    """The command, the same text in every process; where the file goes and its accuracy level do not matter."""
    parts = (job.method, job.form.name, job.exclude, job.rules, job.gather, job.budget)
    return repr((job.source.resolve(), *parts))


def _content(job: Job, model_hash: str, data_hash: str) -> dict[str, str]:
    """Everything but the command that the work of a run depends on. Notices quote the names."""
    return {
        "model": model_hash,
        "calibration data": data_hash,
        "window size": f"{job.window_bytes} {job.providers}",
        "version": f"{__version__} {jax.__version__} {jax.default_backend()} {ir.__version__} {np.__version__}",
    }


@dataclass(frozen=True, eq=False)
class _Quantized:
    """A result for each group, statistics of the windows that ran, and how many activations had moments on disk."""

    results: Sequence[GroupResult]
    windows: Sequence[WindowRun]
    moments_from_cache: int


@dataclass(frozen=True, eq=False)
class _Steps:
    """The steps from an open model to quantized groups, and what they share; ``store`` is None without data."""

    source: Source
    batches: Sequence[Batch]
    store: MomentStore | None
    state: RunState
    job: Job
    clock: Clock
    progress: Progress

    def run(self) -> _Quantized:
        """Calibrates, chooses formats under a budget, and searches."""
        propagates = self.store is not None and self.job.method.steps.propagates
        moments_from_cache, windows, formats = 0, list[WindowRun](), given_formats(self.source.groups, self.job)
        if not propagates or self.job.budget is not None:
            with self.clock.phase("calibrate"):
                moments_from_cache, windows = self._calibrate()
        if self.job.budget is not None:
            with self.clock.phase("choose formats"):
                formats = self._choose_formats()
        results = ResultStore(self.state.folder / "weights", self.state.key)
        search = GroupSearch(formats, self.job.method, results, self.state.resumes)
        if not propagates:
            with self.clock.phase("search"):
                return _Quantized(self._search(search), windows, moments_from_cache)
        with self.clock.phase("calibrate"):
            model, groups = self.source.model, self.source.groups
            quantized, more = quantize_in_order(model, groups, self._calibration(), search, self.clock, self.progress)
        return _Quantized(quantized, [*windows, *more], moments_from_cache)

    def _calibration(self) -> Calibration:
        job, state = self.job, self.state
        return Calibration(self.batches, job.window_bytes, job.providers, state.windows, state.key)

    def _calibrate(self) -> tuple[int, list[WindowRun]]:
        """Brings the moments of every activation into the store; returns how many it had, and the windows that ran."""
        store = self.store
        if store is None:
            return 0, []
        activations = list(dict.fromkeys(a for group in self.source.groups for a in group.activations))
        stored = [activation for activation in activations if has_moments(activation, store)]
        planned = self.state.planned([activation.shared_key for activation in activations if activation not in stored])
        if len(stored) == len(activations):
            return len(stored), []
        # A run that resumes plans the windows that it began with.
        requested = [a for a in activations if a.shared_key in planned or a not in stored]

        def keep(_: Activation, key: str, moments: Moments) -> None:
            store.put(key, moments)

        windows = capture_moments(self.source.model, requested, self._calibration(), keep, self.progress, stored)
        return len(stored), windows

    def _moments_of(self, group: Group) -> MomentsOf | None:
        return None if self.store is None else moments_of(group.activations, self.store)

    def _choose_formats(self) -> Formats:
        """A format for each weight, within the job's budget."""
        advance = self.progress("choose formats", count_weights(self.source.groups))

        def compare(group: Group) -> dict[Site, Losses]:
            losses = losses_of(group, self._moments_of(group), self.job)
            advance_by_weight(advance, group)
            return losses

        with ThreadPoolExecutor(WORKERS) as pool:
            losses = {site: loss for group in pool.map(compare, self.source.groups) for site, loss in group.items()}
        return chosen_formats(self.source.groups, losses, self.job)

    def _search(self, search: GroupSearch) -> list[GroupResult]:
        advance = self.progress("search", count_weights(self.source.groups))

        def quantize(group: Group) -> GroupResult:
            result = search.quantize(group, self._moments_of(group))
            advance_by_weight(advance, group)
            return result

        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(quantize, self.source.groups))


def _tokens(results: Sequence[GroupResult]) -> int:
    """The most tokens that any weight saw. Positions in images count as tokens only if the model has kernels alone."""
    kernels = [result for result in results if result.group.sites[0].kernel]
    return max((r.tokens for r in results if r not in kernels), default=max((r.tokens for r in kernels), default=0))
