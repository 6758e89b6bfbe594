"""``jaxq compare``: finished runs beside each other, from their reports."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxq.errors import JaxqError
from jaxq.harness.run_table import print_runs
from jaxq.harness.sweep_rows import errors_of, run_row

_RECORDS = ("report.json", "estimate.json")
_SAME = {
    "evaluation_data": "the runs were evaluated on different data: their accuracies cannot be compared",
    "model": "the runs are of different models",
}
"""What to say where this hash differs between runs."""

_LEVELS = (
    "ppl, KL and top-1 are those of float32 products (accuracy level 1); default: onnxruntime's own level, which "
    "rounds activations to 8 bits"
)


def compare(runs: Sequence[Path], as_json: bool = False) -> None:
    """Prints a table with a row for each run: sizes, bits, perplexity, KL divergence, seconds.

    Args:
        runs: Folders of runs, folders of sweeps, or their ``report.json``.
        as_json: Print a list of objects instead.

    Raises:
        JaxqError: a folder has no report, or a report cannot be read.
    """
    reports = [(str(path.parent), _read(path)) for run in runs for path in _records(run)]
    rows = [_row(name, report) for name, report in reports]
    if as_json:
        print(json.dumps(rows, indent=1), flush=True)
        return
    console = print_runs("runs", [row | {"error": "failed" if row["error"] else ""} for row in rows])
    for line in _remarks([report for _, report in reports], rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.exit_if_unread()


def _records(run: Path) -> list[Path]:
    """The record of a run, or the records of a sweep's runs in their order."""
    if run.is_file() and run.name in _RECORDS:
        return [run]
    if not run.is_dir():
        problem = "is not a folder" if run.exists() else "does not exist"
        raise JaxqError(f"run {str(run)!r} {problem}: give the folder of a run, which has report.json")
    paths = _of_run(run) or sorted(
        (path for folder in run.iterdir() if folder.is_dir() for path in _of_run(folder)), key=_number_and_name
    )
    if not paths:
        raise JaxqError(f"folder {str(run)!r} has no report.json: give the folder of a run, or of a sweep")
    return paths


def _of_run(folder: Path) -> list[Path]:
    return [folder / name for name in _RECORDS if (folder / name).is_file()][:1]


def _number_and_name(path: Path) -> tuple[int, str]:
    """The number before the first dash of a sweep's folder, then its name."""
    number = path.parent.name.partition("-")[0]
    return (int(number) if number.isdigit() else 0, path.parent.name)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JaxqError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise JaxqError(f"{str(path)!r} is not the report of a run: it holds no object")
    return record


def _row(name: str, report: dict[str, Any]) -> dict[str, object]:
    try:
        size = report.get("size") or report.get("estimate") or {}
        return run_row(name, report) | {"float_mb": size["source_bytes"] / 1e6 if size else None}
    except (KeyError, TypeError) as error:
        raise JaxqError(
            f"the report of {name!r} is not of a run of this jaxq, as it lacks {error}: run it again"
        ) from error


def _remarks(reports: Sequence[dict[str, Any]], rows: Sequence[dict[str, object]]) -> Iterator[str]:
    for error, runs in errors_of(rows).items():
        yield f"{', '.join(runs)}: {error}"
    if any(row["perplexity_default"] is not None for row in rows):
        yield _LEVELS
    for name, sentence in _SAME.items():
        hashes = {report["hashes"].get(name) for report in reports if "hashes" in report} - {None}
        if len(hashes) > 1:
            yield f"note: {sentence}"
