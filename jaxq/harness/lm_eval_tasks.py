"""Tasks of lm-evaluation-harness on folders of onnxruntime-genai; the library is an extra, imported when it is used."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxq.errors import JaxqError
from jaxq.files.companions import GENAI

BACKEND = "onnxruntime-genai"
"""lm-evaluation-harness's name of the runtime."""


@dataclass(frozen=True)
class TaskFigure:
    """One figure of one model on one task.

    Attributes:
        model: The model, as it was named.
        task: Name of the task.
        metric: Name of the figure, such as "acc"; with a filter's name behind a comma where that is not "none".
        value: The figure.
        error: Its standard error; None where the task has none.
        samples: Number of samples of the task that were evaluated.
    """

    model: str
    task: str
    metric: str
    value: float
    error: float | None
    samples: int


def genai_folder(model: str, path: Path) -> Path:
    """The folder of onnxruntime-genai in which a model lies.

    Args:
        model: The model, as it was named.
        path: Its ONNX file.

    Raises:
        JaxqError: there is no ``genai_config.json`` or no tokenizer beside it.
    """
    for name in (GENAI, "tokenizer.json"):
        if not (path.parent / name).is_file():
            raise JaxqError(f"--tasks needs a folder of onnxruntime-genai, and beside model {model!r} is no {name}")
    return path.parent


def run_tasks(folders: Mapping[str, Path], tasks: Sequence[str], limit: int | None = None) -> list[TaskFigure]:
    """Figures of models on tasks: those of ``lm_eval --model onnxruntime-genai --model_args pretrained=<folder>``.

    Args:
        folders: Folders by the models' names.
        tasks: Names of tasks, or paths of YAML files with a task.
        limit: Number of samples of each task at most; None for all.

    Raises:
        JaxqError: the extra is not installed, there is no such task, or the library fails.
    """
    library = _library()
    names, places = _names_and_places(tasks)
    figures = []
    for model, folder in folders.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for the figures
                manager = library.tasks.TaskManager(include_path=places or None)
                _check_names(names, manager)
                results = library.simple_evaluate(
                    model=BACKEND,
                    model_args={"pretrained": str(folder)},
                    tasks=names,
                    limit=limit,
                    task_manager=manager,
                    log_samples=False,
                )
        except JaxqError:
            raise
        except (Exception, SystemExit) as error:  # the library raises what tasks, datasets and runtimes raise
            reason = " ".join(str(error).split())[:300]
            raise JaxqError(f"lm_eval cannot evaluate {model!r} on {', '.join(tasks)}: {reason}") from error
        figures += _figures(model, results)
    return figures


def _library() -> Any:
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
        import lm_eval.tasks  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise JaxqError(
            "--tasks needs lm-evaluation-harness, which is not installed: install jaxq with its extra lm-eval, as in "
            'pip install -e ".[cpu,lm-eval]"'
        ) from error
    return lm_eval


def _names_and_places(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the tasks, and the folders of those that are files."""
    names, places = [], dict[str, None]()
    for task in tasks:
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
            continue
        path = Path(task)
        if not path.is_file():
            raise JaxqError(f"task file {task!r} does not exist: give the path of a YAML file, or a task's name")
        names.append(_task_name(path))
        places[str(path.parent.resolve())] = None
    return names, list(places)


def _task_name(path: Path) -> str:
    """The value of the key "task" at the top of a YAML file; the rest may hold tags that only the library reads."""
    lines = path.read_text(encoding="utf-8").splitlines()
    named = [line.partition(":")[2] for line in lines if line.startswith("task:")]
    name = named[0].partition(" #")[0].strip().strip("'\"") if named else ""
    if not name:
        raise JaxqError(f"task file {str(path)!r} names no task: it needs a line such as 'task: my_task'")
    return name


def _check_names(names: Sequence[str], manager: Any) -> None:
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise JaxqError(f"lm_eval has no task {unknown[0]!r}: lm_eval ls tasks lists them")


def _figures(model: str, results: Mapping[str, Any]) -> Iterator[TaskFigure]:
    """The figures of all tasks; lm_eval writes a figure as "acc,none" and its error as "acc_stderr,none"."""
    for task, row in results["results"].items():
        samples = int(results.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in row.items():
            metric, _, rule = key.partition(",")
            if metric.endswith("_stderr") or isinstance(value, str | bool) or not rule:
                continue
            error = row.get(f"{metric}_stderr,{rule}")
            name = metric if rule == "none" else key
            yield TaskFigure(model, task, name, float(value), _number(error), samples)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
