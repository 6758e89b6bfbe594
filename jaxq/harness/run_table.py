"""The table of several runs in the terminal, for sweeps and for ``jaxq compare``."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxq.harness.lasting_console import LastingConsole

_FILE_WIDTH = 160
_TITLES = {
    "run": "run", "model": "model", "method": "method", "dtype": "dtype", "block_size": "block",
    "scale_dtype": "scales", "form": "form", "swept": "",
    "perplexity": "ppl", "perplexity_default": "default", "float_perplexity": "float", "kl": "KL", "top1": "top-1",
    "cosine": "cosine", "cosine_min": "smallest", "relative_error": "error", "relative_error_default": "default",
    "float_mb": "float MB", "file_mb": "MB", "bits_per_weight": "bits", "seconds": "s", "error": "error",
}  # fmt: skip
"""Columns of the table and their titles; short enough for a terminal of 80 columns."""

_TEXT_COLUMNS = ("run", "model", "method", "dtype", "scale_dtype", "form", "swept", "error")
_ONLY_IF_DIFFERENT = ("model", "dtype", "scale_dtype", "form")
_SHOWN_ELSEWHERE = ("model=", "model.", "method=", "dtype=", "block_size=", "scale_dtype=", "form=", "hydra.")
"""Beginnings of overrides that have a column of their own."""

_FORMATS = {
    "kl": ".3g",
    "top1": ".3f",
    "cosine": ".5f",
    "cosine_min": ".4f",
    "relative_error": ".3g",
    "relative_error_default": ".3g",
    "float_mb": ".3g",
    "file_mb": ".3g",
    "bits_per_weight": ".3g",
    "seconds": ".3g",
}


def print_runs(title: str, rows: Sequence[dict[str, object]]) -> LastingConsole:
    """Prints a table with a row for each run, and returns the console for what follows.

    Args:
        title: Stands above the table.
        rows: From `jaxq.harness.sweep_rows`.
    """
    console = LastingConsole()
    if not console.is_terminal:
        console = LastingConsole(width=_FILE_WIDTH)  # nothing is cut off in a file
    console.print(_table(title, rows))
    return console


def _table(title: str, rows: Sequence[dict[str, object]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [{**row, "swept": swept} for row, swept in zip(rows, _swept(rows), strict=True)]
    names = [name for name in _TITLES if _worth_showing(name, rows)]
    for name in names:
        numbered = name == "run" and all(isinstance(row["run"], int) for row in rows)
        is_text = name in _TEXT_COLUMNS and not numbered
        table.add_column("#" if numbered else _TITLES[name], justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(name), _FORMATS.get(name, ".4g")) for name in names))
    return table


def _swept(rows: Sequence[dict[str, object]]) -> list[str]:
    """The overrides of each run that other runs lack and that no other column shows."""
    overrides = [str(row["overrides"]).split() for row in rows]
    common = set.intersection(*map(set, overrides)) if overrides else set()
    return [
        " ".join(
            override.removeprefix("method.")
            for override in run
            if override not in common and not override.startswith(_SHOWN_ELSEWHERE)
        )
        for run in overrides
    ]


def _worth_showing(name: str, rows: Sequence[dict[str, object]]) -> bool:
    """True for columns with values; for some, only where the values differ."""
    values = {row.get(name) for row in rows} - {None, ""}
    return len(values) > 1 if name in _ONLY_IF_DIFFERENT else bool(values)


def _cell(value: object, number_format: str) -> str:
    if isinstance(value, float):
        return format(value, number_format)
    return "" if value is None else str(value)
