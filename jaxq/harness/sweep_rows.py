"""The rows of a sweep, from the reports of its runs."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS: tuple[str, ...] = (
    "run", "model", "method", "dtype", "block_size", "scale_dtype", "form",
    "perplexity", "perplexity_default", "float_perplexity", "kl", "top1",
    "cosine", "cosine_min", "relative_error", "relative_error_default",
    "file_mb", "bits_per_weight", "seconds", "moments_from_cache", "overrides", "error",
)  # fmt: skip


def sweep_rows(folder: Path) -> list[dict[str, object]]:
    """One row for each ``*/report.json`` or ``*/estimate.json`` in a folder, in the order of the run numbers."""
    paths = [path for name in ("report.json", "estimate.json") for path in folder.glob(f"*/{name}")]
    paths.sort(key=lambda p: (_run_number(p.parent.name), p.parent.name))
    return [run_row(_run_number(path.parent.name), json.loads(path.read_text())) for path in paths]


def _run_number(name: str) -> int:
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
    """The scale dtype of most weights; None without weights."""
    layers = _layers(report)
    return Counter(layer["scale_dtype"] for layer in layers).most_common(1)[0][0] if layers else None


def _chosen(report: dict[str, Any]) -> dict[str, object]:
    """The dtype and the block size under a budget, or "mixed" where weights got different ones; {} without a budget."""
    layers = _layers(report)
    if report["config"]["method"].get("bits_per_weight") is None or not layers:
        return {}
    values = {name: {layer[name] for layer in layers} for name in ("dtype", "block_size")}
    return {name: chosen.pop() if len(chosen) == 1 else "mixed" for name, chosen in values.items()}


def run_row(run: int | str, report: dict[str, Any]) -> dict[str, object]:
    """One row: the values of `COLUMNS`.

    Args:
        run: Number or name of the run.
        report: The contents of its ``report.json`` or ``estimate.json``.
    """
    row: dict[str, object] = {name: None for name in COLUMNS}
    config = report["config"]
    row |= {"run": run, "model": _model_name(config["model"]), "method": config["method"]["name"]}
    row |= {"dtype": config["dtype"]["name"], "block_size": config["block_size"], "form": config["form"]["name"]}
    row |= {"scale_dtype": _scale_dtype(report), "error": "", **_chosen(report)}
    row["overrides"] = " ".join(report.get("overrides", ()))
    if "error" in report:
        return row | {"error": report["error"]}
    if estimate := report.get("estimate"):
        row |= {"file_mb": estimate["target_bytes"] / 1e6, "bits_per_weight": estimate["bits_per_weight"]}
        return row | {"seconds": sum(estimate["seconds"].values())}
    accuracy = report["accuracy"]
    if "runtimes" in accuracy:
        exact, default = accuracy["runtimes"]["level 1"], accuracy["runtimes"].get("default", {})
        row |= {"perplexity": exact["perplexity"], "kl": exact["kl"], "top1": exact["top1"]}
        row |= {"perplexity_default": default.get("perplexity"), "float_perplexity": accuracy["float_perplexity"]}
    if "outputs" in accuracy:
        row |= _worst_output(accuracy["outputs"])
    return row | {
        "method": report["method"],
        "file_mb": report["size"]["target_bytes"] / 1e6,
        "bits_per_weight": report["size"]["bits_per_weight"],
        "seconds": report["seconds"]["total"],
        "moments_from_cache": report["calibration"]["moments_from_cache"],
    }


def errors_of(rows: Sequence[dict[str, object]]) -> dict[str, list[str]]:
    """Each error of failed runs once, with the numbers or names of its runs.

    Example:
        >>> errors_of([{"run": 0, "error": "bad"}, {"run": 1, "error": ""}, {"run": 2, "error": "bad"}])
        {'bad': ['0', '2']}
    """
    errors: dict[str, list[str]] = {}
    for row in rows:
        if row["error"]:
            errors.setdefault(str(row["error"]), []).append(str(row["run"]))
    return errors


def _worst_output(outputs: Sequence[dict[str, Any]]) -> dict[str, object]:
    """Figures of the output with the greatest relative error at level 1; no figure counts as infinite error."""

    def error(output: dict[str, Any]) -> float:
        relative_error = output["runtimes"]["level 1"]["relative_error"]
        return float("inf") if relative_error is None else relative_error

    worst = max(outputs, key=error)["runtimes"]
    exact, default = worst["level 1"], worst.get("default", {})
    return {
        "cosine": exact["cosine"],
        "cosine_min": exact["cosine_min"],
        "relative_error": exact["relative_error"],
        "relative_error_default": default.get("relative_error"),
    }
