"""From an ONNX file to its quantized copy: sites, moments, method, form, file. No printing, no Hydra."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import onnx_ir as ir

from jaxq.calibration.capture import Checkpoint, WindowRun, capture_moments, naming_weights
from jaxq.calibration.moment_store import MomentStore
from jaxq.files.hashing import hash_files
from jaxq.files.model_file import file_bytes, save_model
from jaxq.formats.registry import WeightFormat
from jaxq.graph.activations import Activation
from jaxq.graph.sites import Group, Site
from jaxq.methods.registry import MethodSpec
from jaxq.numerics.drift import Drift
from jaxq.numerics.moments import Moments, MomentsOf, mean_moments
from jaxq.pipeline.budget import Formats, Losses, check_budget, chosen_formats, given_formats, losses_of
from jaxq.pipeline.clock import Clock
from jaxq.pipeline.in_order import Calibration, quantize_in_order
from jaxq.pipeline.job import Job, check_job, patterns_of_tables
from jaxq.pipeline.outcome import Outcome
from jaxq.pipeline.resume import ResultStore, RunState, run_state
from jaxq.pipeline.source import Source, open_source
from jaxq.pipeline.write import write_weights
from jaxq.progress import Progress, silent
from jaxq.runtime.batches import Batch, hash_batches
from jaxq.search.group import quantize_group
from jaxq.search.result import GroupResult
from jaxq.version import __version__

# Groups searched at a time: one compiles or reads while the other computes.
WORKERS = 2


def quantize_model(
    job: Job,
    batches: Sequence[Batch] = (),
    progress: Progress = silent,
    notify: Callable[[str], None] | None = None,
    keep_state_until: ExitStack | None = None,
) -> Outcome:
    """Writes the quantized copy of a model.

    Args:
        job: What to do.
        batches: Calibration data; may be empty for methods that need none.
        progress: Told of each step.
        notify: Called with sentences that matter during the run: whether it resumes a stopped one, for example.
        keep_state_until: Finished work stays on disk until this stack closes without an error, for callers that have
            more to do. Without a stack it stays until the file is written.

    Returns:
        What was done to every weight, and what it took.

    Raises:
        JaxqError: the input is bad; nothing is written then.
    """
    form = check_job(job, bool(batches))
    clock, notices = Clock(), list[str]()
    add_notice = notices.append if notify is None else _both(notices.append, notify)
    with clock.phase("load"):
        source = open_source(job, form)
        max_bits = check_budget(source.groups, job)
        model_hash = hash_files(source.files)
    data_hash = hash_batches(batches)
    store = MomentStore(job.cache, model_hash, data_hash) if batches else None
    for sentence in _useless_options(source.groups, max_bits, job):
        add_notice(sentence)
    with ExitStack() as until_written:
        begun = run_state(job.cache, _identity(job), _content(job, model_hash, data_hash), add_notice)
        state = (until_written if keep_state_until is None else keep_state_until).enter_context(begun)
        with naming_weights(source.groups):
            done = _Run(source, batches, store, state, job, clock, progress).quantize()
        with clock.phase("write"):
            layers = write_weights(source.model, done.results, form)
            save_model(source.model, job.target, job.external_above)
    return Outcome(
        layers=layers,
        skipped=source.skipped,
        unmatched=source.unmatched,
        notices=tuple(notices),
        windows=tuple(done.windows),
        moments_found=done.moments_found,
        tokens=_tokens(done.results),
        model_hash=model_hash,
        data_hash=data_hash,
        source_bytes=source.nbytes,
        target_bytes=file_bytes(job.target),
        quantized_bytes=source.quantized_bytes,
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
        yield f"the pattern {pattern!r} fits a table of Gather alone: gather.dtype says how that is held"


def _both(first: Callable[[str], None], second: Callable[[str], None]) -> Callable[[str], None]:
    def notify(sentence: str) -> None:
        first(sentence)
        second(sentence)

    return notify


def _identity(job: Job) -> str:
    """The command, the same text in every process; where the file goes and its accuracy level do not matter."""
    parts = (job.method, job.form.name, job.exclude, job.rules, job.gather, job.budget)
    return repr((job.source.resolve(), *parts))


def _content(job: Job, model_hash: str, data_hash: str) -> dict[str, str]:
    """What the work of a run depends on besides the command; the names are read in a sentence."""
    return {
        "model": model_hash,
        "calibration data": data_hash,
        "window size": f"{job.window_bytes} {job.providers}",
        "version": f"{__version__} {jax.__version__} {jax.default_backend()} {ir.__version__} {np.__version__}",
    }


@dataclass(frozen=True, eq=False)
class _Work:
    """How groups are quantized, and what is kept of it."""

    formats: Formats
    kept: ResultStore
    found: bool
    method: MethodSpec

    def left(self, group: Group) -> GroupResult | None:
        """What a stopped run left of a group."""
        return self.kept.get(group, self._formats(group)) if self.found else None

    def quantize(self, group: Group, moments: MomentsOf | None, drift: Drift | None = None) -> GroupResult:
        """A group's result: what a stopped run left, or a new one, which is kept."""
        new = partial(quantize_group, group, self._formats(group), moments, self.method, drift)
        return self.left(group) or self.kept.put(new())

    def _formats(self, group: Group) -> list[WeightFormat]:
        return [self.formats[site] for site in group.sites]


@dataclass(frozen=True, eq=False)
class _Done:
    """What a run leaves: a result for each group, and what calibration did."""

    results: Sequence[GroupResult]
    windows: Sequence[WindowRun]
    moments_found: int


@dataclass(frozen=True, eq=False)
class _Run:
    """What the steps of a run share; ``store`` is None without data."""

    source: Source
    batches: Sequence[Batch]
    store: MomentStore | None
    state: RunState
    job: Job
    clock: Clock
    progress: Progress

    def quantize(self) -> _Done:
        """All groups' results: calibration, choice of formats, search."""
        propagates = self.store is not None and self.job.method.steps.propagates
        found, windows, formats = 0, list[WindowRun](), given_formats(self.source.groups, self.job)
        if not propagates or self.job.budget is not None:
            with self.clock.phase("calibrate"):
                found, windows = self._calibrate()
        if self.job.budget is not None:
            with self.clock.phase("choose formats"):
                formats = self._choose_formats()
        kept = ResultStore(self.state.folder / "weights", self.state.key)
        work = _Work(formats, kept, self.state.found, self.job.method)
        if not propagates:
            with self.clock.phase("search"):
                return _Done(self._search(work), windows, found)
        with self.clock.phase("calibrate"):
            results, more = self._propagate(work)
        return _Done(results, [*windows, *more], found)

    def _calibrate(self) -> tuple[int, list[WindowRun]]:
        """Sees to it that the store has the moments of every group; returns how many it had, and what ran."""
        store, state, job = self.store, self.state, self.job
        if store is None:
            return 0, []
        activations = list(
            dict.fromkeys(activation for group in self.source.groups for activation in group.activations)
        )
        found = [activation for activation in activations if _is_stored(activation, store)]
        begun = state.wanted([activation.shared_key for activation in activations if activation not in found])
        if len(found) == len(activations):
            return len(found), []
        # A run that goes on plans the windows that it began with.
        wanted = [activation for activation in activations if activation.shared_key in begun or activation not in found]
        checkpoint = Checkpoint(state.windows, state.key, found)
        windows = capture_moments(
            self.source.model,
            wanted,
            self.batches,
            store.put,
            job.window_bytes,
            job.providers,
            self.progress,
            checkpoint,
        )
        return len(found), windows

    def _choose_formats(self) -> Formats:
        """A format for each weight, within the job's budget."""
        advance = self.progress("choose formats", len(self.source.groups))

        def find(group: Group) -> dict[Site, Losses]:
            losses = losses_of(group, _moments(group, self.store), self.job)
            advance()
            return losses

        with ThreadPoolExecutor(WORKERS) as pool:
            each = pool.map(find, self.source.groups)
            found = {site: losses for group in each for site, losses in group.items()}
        return chosen_formats(self.source.groups, found, self.job)

    def _search(self, work: _Work) -> list[GroupResult]:
        advance = self.progress("search", len(self.source.groups))

        def quantize(group: Group) -> GroupResult:
            result = work.quantize(group, _moments(group, self.store))
            advance()
            return result

        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(quantize, self.source.groups))

    def _propagate(self, work: _Work) -> tuple[list[GroupResult], list[WindowRun]]:
        """Calibration and search by turns; see `jaxq.pipeline.in_order`."""
        job, groups = self.job, self.source.groups

        def is_kept(group: Group) -> bool:
            return work.left(group) is not None

        data = Calibration(self.batches, self.state.windows, self.state.key, job.window_bytes, job.providers)
        with ThreadPoolExecutor(WORKERS) as pool:
            return quantize_in_order(
                self.source.model, groups, data, work.quantize, is_kept, pool, self.clock, self.progress
            )


def _is_stored(activation: Activation, store: MomentStore) -> bool:
    return activation.shared_key in store or all(key in store for key in activation.keys)


def _moments(group: Group, store: MomentStore | None) -> MomentsOf | None:
    if store is None or not group.activations:
        return None

    def read(index: int) -> Moments:
        keys = [r.shared_key if r.shared_key in store else r.keys[index] for r in group.activations]
        return mean_moments([store.get(key) for key in keys])

    return read


def _tokens(results: Sequence[GroupResult]) -> int:
    """The most tokens that any weight saw; positions in images are tokens where there is nothing else."""
    kernels = [result for result in results if result.group.sites[0].kernel]
    return max((r.tokens for r in results if r not in kernels), default=max((r.tokens for r in kernels), default=0))
