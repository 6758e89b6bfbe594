"""The table of a sweep, and the file with its rows."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


class SweepTable(Callback):
    """Hydra callback: at the end of a sweep, one table of all its runs, also as ``summary.csv``."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Reads the runs' reports and prints them; ends the program with code 2 if a run failed."""
        folder = Path(config.hydra.sweep.dir)
        rows = sweep_rows(folder)
        console = Console()
        if not console.is_terminal:
            console = Console(width=_FILE_WIDTH)  # nothing is cut off in a file
        console.print(_sweep_table(rows))
        with (folder / "summary.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        console.print(f"{folder}/summary.csv", highlight=False, soft_wrap=True)
        if any(row["error"] for row in rows):
            raise SystemExit(2)


_COLUMNS: tuple[str, ...] = (
    "run", "model", "method", "dtype", "block_size", "scale_dtype", "form",
    "perplexity", "perplexity_default", "float_perplexity", "kl", "top1",
    "cosine", "cosine_min", "relative_error", "relative_error_default",
    "file_mb", "bits_per_weight", "seconds", "moments_found", "overrides", "error",
)  # fmt: skip


def sweep_rows(folder: Path) -> list[dict[str, object]]:
    """One row for each ``*/report.json``, or ``estimate.json``, below a folder, in the order of the runs' numbers."""
    found = (path for name in ("report.json", "estimate.json") for path in folder.glob(f"*/{name}"))
    paths = sorted(found, key=lambda p: (_number(p.parent.name), p.parent.name))
    return [_sweep_row(path.parent.name, json.loads(path.read_text())) for path in paths]


def _number(name: str) -> int:
    head = name.partition("-")[0]
    return int(head) if head.isdigit() else 0


def _model_name(model: dict[str, Any]) -> str:
    if model["name"] == "hf":
        return Path(str(model.get("id"))).name
    if not model.get("path"):
        return model["name"]
    path = Path(model["path"])
    return path.parent.name if path.stem == "model" else path.stem


def _layers(report: dict[str, Any]) -> list[dict[str, Any]]:
    return report.get("estimate", report).get("layers") or []


def _scale_dtype(report: dict[str, Any]) -> str | None:
    """The type of most weights' scales."""
    layers = _layers(report)
    return Counter(layer["scale_dtype"] for layer in layers).most_common(1)[0][0] if layers else None


def _chosen(report: dict[str, Any]) -> dict[str, object]:
    """What a budget chose where all weights got the same, else "mixed"; nothing without a budget."""
    layers = _layers(report)
    if report["config"]["method"].get("bits_per_weight") is None or not layers:
        return {}
    found = {name: {layer[name] for layer in layers} for name in ("dtype", "block_size")}
    return {name: values.pop() if len(values) == 1 else "mixed" for name, values in found.items()}


def _sweep_row(run: str, report: dict[str, Any]) -> dict[str, object]:
    row: dict[str, object] = {name: None for name in _COLUMNS}
    config = report["config"]
    row |= {"run": _number(run), "model": _model_name(config["model"]), "method": config["method"]["name"]}
    row |= {"dtype": config["dtype"]["name"], "block_size": config["block_size"], "form": config["form"]["name"]}
    row |= {"scale_dtype": _scale_dtype(report), "error": "", **_chosen(report)}
    row["overrides"] = " ".join(report.get("overrides", ()))
    if "error" in report:
        return row | {"error": report["error"]}
    if planned := report.get("estimate"):
        row |= {"file_mb": planned["target_bytes"] / 1e6, "bits_per_weight": planned["bits_per_weight"]}
        return row | {"seconds": sum(planned["seconds"].values())}
    accuracy = report["accuracy"]
    if "runtimes" in accuracy:
        exact, default = accuracy["runtimes"]["level 1"], accuracy["runtimes"].get("default", {})
        row |= {"perplexity": exact["perplexity"], "kl": exact["kl"], "top1": exact["top1"]}
        row |= {"perplexity_default": default.get("perplexity"), "float_perplexity": accuracy["reference"]}
    if "outputs" in accuracy:
        row |= _worst_output(accuracy["outputs"])
    return row | {
        "method": report["method"],
        "file_mb": report["size"]["target_bytes"] / 1e6,
        "bits_per_weight": report["size"]["bits_per_weight"],
        "seconds": report["seconds"]["total"],
        "moments_found": report["calibration"]["moments_found"],
    }


def _worst_output(outputs: Sequence[dict[str, Any]]) -> dict[str, object]:
    """The output with the greatest error at level 1; one without a figure is worse than any."""

    def error(output: dict[str, Any]) -> float:
        found = output["runtimes"]["level 1"]["relative_error"]
        return float("inf") if found is None else found

    worst = max(outputs, key=error)["runtimes"]
    exact, default = worst["level 1"], worst.get("default", {})
    return {
        "cosine": exact["cosine"],
        "cosine_min": exact["cosine_min"],
        "relative_error": exact["relative_error"],
        "relative_error_default": default.get("relative_error"),
    }


def _sweep_table(rows: Sequence[dict[str, object]]) -> Table:
    table = Table(title="sweep", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = {
        "run": "#", "model": "model", "method": "method", "dtype": "dtype", "block_size": "block",
        "scale_dtype": "scales", "form": "form", "swept": "",
        "perplexity": "ppl",
        "perplexity_default": "default", "float_perplexity": "float", "kl": "KL", "top1": "top-1",
        "cosine": "cosine", "cosine_min": "least", "relative_error": "error", "relative_error_default": "default",
        "file_mb": "MB", "bits_per_weight": "bits", "seconds": "s", "error": "error",
    }  # fmt: skip
    rows = [{**row, "swept": swept} for row, swept in zip(rows, _swept(rows), strict=True)]
    for name, title in names.items():
        if _worth_showing(name, rows):
            table.add_column(title, justify="left" if name in _WORDS else "right")
    for row in rows:
        table.add_row(*(_cell(row[name], _FORMATS.get(name, ".4g")) for name in names if _worth_showing(name, rows)))
    return table


def _swept(rows: Sequence[dict[str, object]]) -> list[str]:
    """Of each run, what its command line has that not all have and that no other column tells."""
    each = [str(row["overrides"]).split() for row in rows]
    common = set.intersection(*map(set, each)) if each else set()
    own = ([said for said in run if said not in common and not said.startswith(_TOLD)] for run in each)
    return [" ".join(said.removeprefix("method.") for said in run) for run in own]


def _worth_showing(name: str, rows: Sequence[dict[str, object]]) -> bool:
    values = {row[name] for row in rows} - {None, ""}
    return len(values) > 1 if name in ("model", "dtype", "scale_dtype", "form") else bool(values)


_FILE_WIDTH = 160
_WORDS = ("model", "method", "dtype", "scale_dtype", "form", "swept", "error")
_TOLD = ("model=", "model.", "method=", "dtype=", "block_size=", "scale_dtype=", "form=")

# Short enough for a terminal of 80 columns.
_FORMATS = {
    "kl": ".3g",
    "top1": ".3f",
    "cosine": ".5f",
    "cosine_min": ".4f",
    "relative_error": ".3g",
    "relative_error_default": ".3g",
    "file_mb": ".3g",
    "bits_per_weight": ".3g",
    "seconds": ".3g",
}


def _cell(value: object, form: str) -> str:
    if isinstance(value, float):
        return format(value, form)
    return "" if value is None else str(value)
