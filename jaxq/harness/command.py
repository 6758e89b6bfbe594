"""The command line: composes the configuration, runs it, and turns failures into one sentence and an exit code."""

import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import hydra
import jax
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from jaxq.errors import JaxqError
from jaxq.evaluation.accuracy import Evaluation, evaluate
from jaxq.files.cache_use import cache_in_use
from jaxq.files.companions import copy_companions
from jaxq.files.model_file import hash_model, load_model
from jaxq.forms.dq import is_fused
from jaxq.forms.form import Form
from jaxq.harness.config import Config, cache_dir, conf_dir, flat_keys, option_names, register
from jaxq.harness.dry_run_report import print_estimate
from jaxq.harness.failures import TRACEBACK, fail
from jaxq.harness.float_weights import float_weights_note
from jaxq.harness.hydra_errors import hydra_sentence, suggestion
from jaxq.harness.progress_bars import print_line, progress_bars
from jaxq.harness.records import Report, versions, write_estimate, write_failure, write_report
from jaxq.harness.report import print_report, unmatched_note
from jaxq.harness.run_folder import link_latest, remove_without_result
from jaxq.harness.run_log import LoggedConsole, run_log
from jaxq.harness.sweep import remove_stopped_sweep
from jaxq.harness.task import open_task, text_hashes
from jaxq.harness.text_sample import TextSample, sample_texts
from jaxq.harness.tokenizer_files import find_tokenizer
from jaxq.pipeline.clock import Clock
from jaxq.pipeline.dry_run import estimate
from jaxq.pipeline.job import Job
from jaxq.pipeline.outcome import Outcome
from jaxq.pipeline.quantize import quantize_model
from jaxq.runtime.batches import Batch, hash_batches

_QUICK_SAMPLES = 16  # of conf/eval/quick.yaml

register()


def execute() -> None:
    """Runs the command in ``sys.argv``; exits with code 2 and one sentence on bad input."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets its errors through to the handlers below
    HydraConfig.instance().cfg = None  # that of an earlier command in this process
    try:
        _hydra_main()
    except BaseException as error:
        remove_stopped_sweep()
        if os.environ.get(TRACEBACK) == "1" or not isinstance(error, Exception):
            raise
        sys.exit(fail(_sentence(error)))


def _sentence(error: Exception) -> str:
    """The sentence for an error of a command.

    Raises:
        BrokenPipeError: the reader of the output is gone.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, JaxqError | HydraException | OmegaConfBaseException):
        return hydra_sentence(error)
    if isinstance(error, OSError):
        return _os_error_sentence(error)
    # not bad input that jaxq knows of, perhaps its own fault
    return f"{type(error).__name__}: {' '.join(str(error).split())}; {TRACEBACK}=1 shows where"


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _hydra_main(raw: DictConfig) -> None:
    config = cast(Config, raw)
    folder = Path(HydraConfig.get().runtime.output_dir)
    plain = cast(Mapping[str, object], OmegaConf.to_container(raw, resolve=True))
    console, sweeps, done = LoggedConsole(), _sweeps(), False
    try:
        _refuse_unknown(raw)
        if config.dry_run:
            done = dry_run(config, plain, folder, console)
        else:
            with run_log(folder, _overrides(), versions()):
                report = run(config, plain, folder, console, _overrides(), sweeps)
                print_report(report, folder, console)
            done = True
    except JaxqError as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        if not sweeps:
            sys.exit(fail(str(error)))
        done = _record(str(error), plain, folder)  # the other runs go on; the table of the sweep has the error
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or not sweeps:
            raise
        done = _record(f"{type(error).__name__}: {' '.join(str(error).split())}", plain, folder)
    finally:
        if not done:
            remove_without_result(folder)
    if not sweeps:  # the table of a sweep does both
        if not config.dry_run:
            link_latest(folder)
        console.exit_if_unread()


def dry_run(config: Config, plain: Mapping[str, object], folder: Path, console: Console) -> bool:
    """Estimates what `run` would do, and writes no model.

    Returns:
        True if ``estimate.json`` was written: where the command names a folder, and in sweeps, whose table reads it.

    Raises:
        JaxqError: the input is bad.
    """
    cache = cache_dir(config)
    start = time.perf_counter()
    with cache_in_use(cache), progress_bars(console) as progress:
        task = open_task(config, folder / "model.onnx", cache, progress, _overrides(), _sweeps())
    data = time.perf_counter() - start
    result = estimate(task.job, task.data.calib, task.data.held_out)
    drawing = {"draw text": task.data.drawing_seconds} if task.data.drawing_seconds else {}
    result = replace(result, seconds={"data": data, **drawing, **result.seconds})
    print_estimate(result, task.job.method.name, task.data.origins, task.notes, console)
    named = any(override.startswith("hydra.run.dir=") for override in HydraConfig.get().overrides.hydra)
    if kept := named or _sweeps():
        write_estimate(result, plain, _overrides(), folder, task.data.origins)
    return kept


def run(
    config: Config,
    plain: Mapping[str, object],
    folder: Path,
    console: Console,
    overrides: Sequence[str],
    sweeps: bool = False,
) -> Report:
    """Quantizes one model, evaluates it and writes its files.

    Args:
        config: The configuration.
        plain: The configuration as plain dictionaries, for the report.
        folder: Receives model.onnx, report.json and layers.csv.
        console: Shows progress.
        overrides: The overrides that the configuration was composed from; those without effect are refused.
        sweeps: The run is one of a sweep.

    Raises:
        JaxqError: the input is bad.
    """
    start = time.perf_counter()
    cache = cache_dir(config)
    _keep_compiled(cache)
    with ExitStack() as until_reported:  # finished work stays on disk until the report is written
        until_reported.enter_context(cache_in_use(cache))
        clock = Clock()
        shorter = f"eval=quick takes {_QUICK_SAMPLES} samples" if config.eval.samples > _QUICK_SAMPLES else ""
        with progress_bars(console, shorter) as progress:
            with clock.phase("data"):
                task = open_task(config, folder / "model.onnx", cache, progress, overrides, sweeps)
            job, data = task.job, task.data
            outcome = quantize_model(
                job, data.calib, progress, lambda sentence: print_line(console, sentence), until_reported
            )
            beside = copy_companions(task.companions, folder)
            failure = sample = None
            with clock.phase("evaluate"):
                try:
                    evaluation = evaluate(job.source, job.target, data.held_out, progress, job.form)
                    sample = _sample(config, job, data.held_out, evaluation)
                except JaxqError as error:  # the report is written all the same, without accuracy
                    failure, evaluation = error, str(error)
        large = float_weights_note(config, job, outcome.skipped, outcome.target_bytes, bool(data.calib))
        report = Report(
            config=plain,
            method=job.method.name,
            outcome=outcome,
            evaluation=evaluation,
            hashes=_hashes(config, job, outcome, data.held_out),
            phases=(clock.phases[0], *outcome.phases, *clock.phases[1:]),
            overrides=tuple(overrides),
            total_seconds=time.perf_counter() - start,
            origins=data.origins,
            sample=sample,
            notes=(
                *task.notes,
                *_form_notes(job.form),
                *_notes(outcome),
                *_unfused_note(outcome, job.form),
                *beside,
                *([large] if large else []),
            ),
        )
        write_report(report, folder)
        if failure:
            raise failure
        return report


def _sample(config: Config, job: Job, held_out: Sequence[Batch], evaluation: object) -> TextSample | None:
    """A sample of text of both models; None of models that are no language models or that onnxruntime cannot run."""
    if not isinstance(evaluation, Evaluation) or not job.form.runs:
        return None
    try:
        return sample_texts(job.source, job.target, find_tokenizer(config, "eval", job.source), held_out)
    except JaxqError:  # a tokenizer that cannot be read, as beside token ids: the figures stand without a sample
        return None


def _hashes(config: Config, job: Job, outcome: Outcome, held_out: Sequence[Batch]) -> dict[str, str]:
    """SHA-256 of what went into a run, and of the file that came out."""
    return {
        "model": outcome.model_hash,
        "calibration_data": outcome.data_hash,
        "evaluation_data": hash_batches(held_out),
        "output": hash_model(job.target, load_model(job.target)),
        **text_hashes(config),
    }


def _form_notes(form: Form) -> Iterator[str]:
    if not form.runs:
        yield f"onnxruntime cannot run form={form.name} on a CPU: accuracy is that of the dequantized weights"


def _notes(outcome: Outcome) -> Iterator[str]:
    if nested := [layer for layer in outcome.layers if layer.nested and layer.note]:
        yield f"{len(nested)} weights are in a subgraph, which calibration does not see: see their notes in layers.csv"
    yield from outcome.notices
    for pattern in outcome.unmatched:
        yield unmatched_note(pattern)
    for note, names in _layer_notes(outcome).items():
        yield f"{', '.join(map(repr, names[:3]))}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {note}"
    unmasked = sorted({name for window in outcome.windows for name in window.unmasked})
    if unmasked:
        yield f"padding counts in {len(unmasked)} activations whose shape shows no tokens: {', '.join(unmasked[:3])}"


def _unfused_note(outcome: Outcome, form: Form) -> Iterator[str]:
    sizes = {layer.block_size for layer in outcome.layers if not layer.is_table}
    slow = sorted(size for size in sizes if not is_fused(size))
    if form.name == "dq" and slow:
        yield (
            f"blocks of {', '.join(map(str, slow))}: onnxruntime makes floats of such codes at every run, and one "
            "token takes about 100 times as long; it multiplies by blocks of 16, 32, 64, 128 ... as they are"
        )


def _layer_notes(outcome: Outcome) -> dict[str, list[str]]:
    """Notes on weights, each with the names of its weights; weights in subgraphs have one common note."""
    notes: dict[str, list[str]] = {}
    for layer in outcome.layers:
        if layer.note and not layer.nested:
            notes.setdefault(layer.note, []).append(layer.name)
    return notes


def _keep_compiled(cache: Path) -> None:
    """Lets jax store compiled functions on disk, so that the next run of the same shapes starts faster.

    Settings that the user made in the environment take precedence.
    """
    for name, value in (("compilation_cache_dir", str(cache / "xla")), ("persistent_cache_min_compile_time_secs", 0.2)):
        if f"JAX_{name.upper()}" not in os.environ:
            jax.config.update(f"jax_{name}", value)


def _refuse_unknown(raw: DictConfig) -> None:
    for key in flat_keys(OmegaConf.to_container(raw)):  # +key=value adds keys that nothing reads
        if key not in option_names():
            raise JaxqError(f"there is no option {key!r}: {suggestion(key)}")


def _sweeps() -> bool:
    """True for a run of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _overrides() -> tuple[str, ...]:
    """The overrides on the command line."""
    return tuple(HydraConfig.get().overrides.task)


def _record(sentence: str, plain: Mapping[str, object], folder: Path) -> bool:
    """Writes an error to the folder of a run of a sweep, for the sweep's table; prints it where that is impossible."""
    try:
        write_failure(sentence, plain, _overrides(), folder)
    except OSError:
        fail(sentence)
        return False
    return True


def _os_error_sentence(error: OSError) -> str:
    if error.errno == errno.ENOSPC and error.filename is None:
        places = f"outputs, cache_dir and temporary files ({tempfile.gettempdir()})"
        return f"{error.strerror}: free disk space for {places}; the same command then resumes from its finished work"
    return f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
