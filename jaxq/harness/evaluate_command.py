"""``jaxq evaluate``: model files of any tool side by side, as a table or as JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from rich.console import Console
from rich.table import Table

from jaxq.evaluation.judge import Judged
from jaxq.harness.evaluate import ModelsEvaluation, evaluate_models, evaluate_tasks
from jaxq.harness.progress_bars import progress_bars
from jaxq.harness.text_sample import escaped

_FILE_WIDTH = 160


def evaluate(
    models: Sequence[str],
    data: str | None,
    against: str | None,
    prompt: str | None,
    settings: Sequence[str],
    tasks: tuple[Sequence[str], int | None],
    as_json: bool,
) -> None:
    """Prints the figures of models; arguments as for `jaxq.harness.evaluate.evaluate_models`.

    Args:
        models, data, against, prompt, settings: As there.
        tasks: Tasks of lm-evaluation-harness, and the number of samples of each at most.
        as_json: Print an object instead of tables.

    Raises:
        JaxqError: as there.
    """
    names, limit = tasks
    figures = evaluate_tasks(models, names, limit) if names else ()
    with progress_bars(Console(stderr=True)) as progress:
        result = evaluate_models(models, data, against, prompt, settings, progress)
    result = replace(result, tasks=figures)
    if as_json:
        print(json.dumps(as_record(result), indent=1, ensure_ascii=False), flush=True)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    console.print(_table(result))
    if result.tasks:
        console.print(_task_table(result))
    for line in _lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def as_record(result: ModelsEvaluation) -> dict[str, object]:
    """The figures as plain dictionaries."""
    record = asdict(result)
    for row, model in zip(record["models"], result.models, strict=True):
        row["bits_per_byte"] = result.bits_per_byte(model)
    return record


def _table(result: ModelsEvaluation) -> Table:
    """One row for each model; columns that no model has are left out."""
    title = "size and speed" if not result.data else f"{result.samples} samples of {result.data}"
    table = Table(title=title, title_justify="left")
    columns = [(name, [cell(model, result) for model in result.models]) for name, cell in _COLUMNS]
    shown = [(name, cells) for name, cells in columns if any(cells)]
    for i, (name, _) in enumerate(shown):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for cells in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*cells)
    return table


def _task_table(result: ModelsEvaluation) -> Table:
    """One row for each task and metric, one column for each model."""
    table = Table("task", "metric", title="lm-evaluation-harness", title_justify="left")
    for model in dict.fromkeys(figure.model for figure in result.tasks):
        table.add_column(model, justify="right", overflow="fold")
    rows: dict[tuple[str, str], list[str]] = {}
    for figure in result.tasks:
        rows.setdefault((figure.task, figure.metric), []).append(_with_error(figure.value, figure.error, 4))
    for names, cells in rows.items():
        table.add_row(*names, *cells)
    return table


def _lines(result: ModelsEvaluation) -> Iterator[str]:
    yield f"run by {result.setting}"
    if any(model.perplexity_error for model in result.models):
        yield "+- is one standard error over samples"
    if result.against:
        yield f"KL, top-1 and errors of outputs are against {result.against}"
    if speed := result.models[0].speed:
        steps = f"a prompt of {speed.prompt} tokens and {speed.tokens} more"
        yield f"tokens/s: one sequence, {steps}; median of {speed.repeats}, in turns"
    if result.prompt is not None:
        yield f"prompt: {escaped(result.prompt)}"
    for model in result.models:
        if model.text is not None:
            yield f"  {model.model}: {escaped(model.text)}"
    if not result.data:
        yield "accuracy: not measured, give held-out text or token ids with --data"


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cosine(model: Judged) -> float | None:
    """The smallest mean cosine of an output."""
    return min((e.cosine for o in model.outputs for e in o.runtimes.values()), default=None)


def _relative_error(model: Judged) -> float | None:
    """The greatest relative error of an output."""
    return max((e.relative_error for o in model.outputs for e in o.runtimes.values()), default=None)


_COLUMNS = (
    ("model", lambda m, r: m.model),
    ("MB", lambda m, r: f"{m.nbytes / 1e6:.2f}"),
    ("perplexity", lambda m, r: _with_error(m.perplexity, m.perplexity_error, 3)),
    ("bits/byte", lambda m, r: _number(r.bits_per_byte(m), ".4f")),
    ("KL, nats", lambda m, r: _with_error(m.kl, m.kl_error, 4)),
    ("top-1", lambda m, r: _number(m.top1, ".2%")),
    ("cosine", lambda m, r: _number(_cosine(m), ".6f")),
    ("relative error", lambda m, r: _number(_relative_error(m), ".3g")),
    ("prefill, tokens/s", lambda m, r: _number(m.speed and m.speed.prefill, ".0f")),
    ("decode, tokens/s", lambda m, r: _number(m.speed and m.speed.decode, ".1f")),
)
"""Titles of the table's columns, and their cells; "" for a figure that was not measured."""
