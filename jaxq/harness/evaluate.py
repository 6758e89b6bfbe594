"""Evaluate model files of any tool: data from the options of a run, figures from `jaxq.evaluation`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxq.data.texts import load_tokenizer
from jaxq.errors import JaxqError
from jaxq.evaluation.judge import Judged, Sample, Subject, judge
from jaxq.files.model_file import load_model
from jaxq.files.model_folder import find_model
from jaxq.harness.compose import compose_config
from jaxq.harness.config import Config, option_names
from jaxq.harness.data import check_data, read_data
from jaxq.harness.lm_eval_tasks import TaskFigure, genai_folder, run_tasks
from jaxq.harness.overrides import held_out_overrides, plain_settings, written
from jaxq.harness.text_sample import PROMPT_TOKENS
from jaxq.harness.tokenizer_files import find_tokenizer
from jaxq.progress import Progress, silent
from jaxq.runtime.inputs import TOKENS, read_input_spec
from jaxq.runtime.session import runtime

_READ = tuple(
    f"eval.{key}"
    for key in ("tokens", "text", "dataset", "shares", "subset", "split", "column", "tokenizer", "samples", "length")
)
"""Options of a run that an evaluation reads, beside the group ``eval``. It reads one sample at a time."""

_DATA_KEYS = ("eval.tokens", "eval.text", "eval.dataset")


@dataclass(frozen=True)
class ModelsEvaluation:
    """Figures of models on the same data.

    Attributes:
        models: In the order given.
        against: The float model that divergence and agreement refer to; None without one.
        data: The held-out data, as it was named; None without any.
        samples, tokens: Number of samples, and of predicted tokens; 0 without data.
        text_bytes: Bytes of UTF-8 text that the predicted tokens stand for; None without a tokenizer.
        prompt: The text that the models continue; None without a tokenizer.
        setting: The runtime and its setting.
        tasks: Figures of lm-evaluation-harness; empty where no task was asked for.
    """

    models: tuple[Judged, ...]
    against: str | None
    data: str | None
    samples: int
    tokens: int
    text_bytes: int | None
    prompt: str | None
    setting: str
    tasks: tuple[TaskFigure, ...] = ()

    def bits_per_byte(self, model: Judged) -> float | None:
        """Bits that a model needs for a byte of the text: comparable between models of different tokenizers."""
        if model.perplexity is None or not self.text_bytes:
            return None
        return math.log2(model.perplexity) * self.tokens / self.text_bytes


def evaluate_models(
    models: Sequence[str],
    data: str | None = None,
    against: str | None = None,
    prompt: str | None = None,
    settings: Sequence[str] = (),
    progress: Progress = silent,
) -> ModelsEvaluation:
    """Figures of model files, each run by onnxruntime on the CPU as it is.

    Args:
        models: ONNX files, or folders with one (onnxruntime-genai, optimum, a run's).
        data: Held-out data: an .npz file, a text file or a folder of such, or a dataset. None measures size and speed.
        against: The float model, as in ``models``.
        prompt: A text to continue; None takes the beginning of the data.
        settings: Overrides of options ``eval.*``; others are refused.
        progress: Called at the beginning and after each step of a phase.

    Raises:
        JaxqError: a path is wrong, a file cannot be read or run, the tokenizer is missing or of another vocabulary, or
            the models cannot be compared.
    """
    _check_settings(settings)
    overrides = [*held_out_overrides(data), *plain_settings(settings)]
    paths = [find_model(Path(model)) for model in models]
    float_path = None if against is None else find_model(Path(against))
    _check_used(data, against, settings)
    config = compose_config([*_model(paths[0]), "calib.samples=0", *overrides])
    check_data(config)
    tokenizer = _tokenizer(config, [*paths, *([float_path] if float_path else [])])
    subjects = [_subject(name, path, tokenizer, overrides) for name, path in zip(models, paths, strict=True)]
    reference = None if float_path is None else _subject(str(against), float_path, tokenizer, overrides)
    _check_same_data([*subjects, *([reference] if reference else [])])
    ids = [batch.feeds[TOKENS] for batch in subjects[0].batches if TOKENS in batch.feeds]
    sample, text_bytes, shown = _sample(tokenizer, ids, prompt)
    rows = judge(subjects, reference, sample, progress=progress)
    return ModelsEvaluation(
        models=tuple(rows),
        against=against,
        data=data,
        samples=len(subjects[0].batches),
        tokens=rows[0].tokens or 0,
        text_bytes=text_bytes,
        prompt=shown if rows[0].text is not None else None,
        setting=f"onnxruntime {runtime().__version__} on the CPU, accuracy levels as the files have them (default 4)",
    )


def _check_settings(settings: Sequence[str]) -> None:
    for setting in settings:
        key = setting.partition("=")[0].lstrip("+~")
        if key not in ("eval", *_READ) and (
            key in option_names() or key in ("preset", "experiment") or key.startswith("hydra.")
        ):
            raise JaxqError(
                f"{key} is an option of a run and changes no evaluation: leave it out; {', '.join(_READ)} can be given"
            )


def _check_used(data: str | None, against: str | None, settings: Sequence[str]) -> None:
    """Refuses what only held-out data gives an effect."""
    keys = [setting.partition("=")[0] for setting in settings]
    if data is not None or any(key in _DATA_KEYS for key in keys):
        return
    useless = [key for key in keys if key.startswith("eval.") and key != "eval.tokenizer"]  # that reads the prompt
    useless += [] if against is None else ["--against"]
    if useless:
        raise JaxqError(f"{useless[0]} changes nothing without held-out data: give --data, or leave it out")


def _model(path: Path) -> list[str]:
    return ["model=onnx", f"model.path={written(str(path))}"]


def _tokenizer(config: Config, paths: Sequence[Path]) -> Path | None:
    """The tokenizer that is given, else the first one that lies beside a model."""
    return next((t for path in paths if (t := find_tokenizer(config, "eval", path)) is not None), None)


def _subject(name: str, path: Path, tokenizer: Path | None, overrides: Sequence[str]) -> Subject:
    """A model with the data as its inputs, one sample a batch."""
    given = [] if tokenizer is None else [f"eval.tokenizer={written(str(tokenizer))}"]
    config = compose_config([*_model(path), "calib.samples=0", *overrides, *given, "eval.batch_size=1"])
    named = config.eval.tokens or config.eval.text or config.eval.dataset
    batches = read_data(config, path, read_input_spec(load_model(path))).held_out if named else []
    return Subject(name, path, batches)


def _check_same_data(subjects: Sequence[Subject]) -> None:
    """Refuses models that read the data differently."""
    first = subjects[0]
    for other in subjects[1:]:
        if len(other.batches) != len(first.batches):
            raise JaxqError(f"models {first.name!r} and {other.name!r} read the data as different numbers of samples")


def _sample(
    tokenizer: Path | None, ids: Sequence[np.ndarray], prompt: str | None
) -> tuple[Sample | None, int | None, str | None]:
    """What the models continue, the bytes of the predicted tokens, and the prompt as text."""
    if tokenizer is None:
        if prompt is not None:
            raise JaxqError("--prompt is given, and no tokenizer.json is beside the models: give eval.tokenizer=<file>")
        return None, None, None
    encoder = load_tokenizer(tokenizer)
    encoder.no_padding()
    encoder.no_truncation()

    def decode(tokens: Sequence[int]) -> str:
        return encoder.decode(list(tokens), skip_special_tokens=False)

    text_bytes = sum(len(decode(row[1:].tolist()).encode()) for array in ids for row in array) or None
    start = encoder.encode(prompt).ids if prompt is not None else (ids[0][0, :PROMPT_TOKENS].tolist() if ids else [])
    if not start:
        return None, text_bytes, None
    return Sample(np.array([start], np.int64), decode), text_bytes, decode(start)


def evaluate_tasks(models: Sequence[str], tasks: Sequence[str], limit: int | None) -> tuple[TaskFigure, ...]:
    """Figures of lm-evaluation-harness; see `jaxq.harness.lm_eval_tasks.run_tasks`.

    Args:
        models: Folders of onnxruntime-genai, or the ONNX files in them.
        tasks: Names of tasks, or paths of YAML files.
        limit: Number of samples of each task at most; None for all.

    Raises:
        JaxqError: a model lies in no such folder, or the tasks cannot be run.
    """
    if limit is not None and limit < 1:
        raise JaxqError(f"--limit is {limit}: give a positive number of samples")
    folders = {model: genai_folder(model, find_model(Path(model))) for model in models}
    return tuple(run_tasks(folders, tasks, limit))
