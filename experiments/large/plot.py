"""Draw what measure.py and scaling.py measured; needs the extra `plot` (matplotlib).

    python experiments/large/plot.py experiments/large/results

Writes scaling.png with linear fits (also into scaling.json, as `fits`) and memory.png.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt  # pyright: ignore[reportMissingImports]

COLORS = {"calibrate": "#1f77b4", "search": "#d62728", "write": "#2ca02c", "total": "#444444", "cpu": "#9467bd"}


def fit(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The line through points (least squares), and the share of their variance that it explains."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (slope * x + intercept)
    variance = np.sum((y - y.mean()) ** 2)
    return {"slope": float(slope), "intercept": float(intercept), "r2": float(1 - np.sum(residual**2) / variance)}


def draw_scaling(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """Both panels; returns the fits."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    fits: dict[str, Any] = {}
    titles = {"layers": "layers (2048 tokens)", "tokens": "tokens (4 layers)"}
    for axis, (varied, title) in zip(axes, titles.items(), strict=True):
        points = [p for p in result["points"].values() if p["varied"] == varied]
        x = np.array([p[varied] for p in points], float)
        fits[varied] = {}
        for phase, color in COLORS.items():
            y = np.array([p["median"][phase] for p in points])
            line = fits[varied][phase] = fit(x, y)
            for point, at in zip(points, x, strict=True):
                ys = [r["cpu_seconds"] if phase == "cpu" else r["seconds"][phase] for r in point["repeats"]]
                axis.plot([at] * len(ys), ys, ".", color=color, alpha=0.35, markersize=4)
            grows = varied == "layers" or phase in ("calibrate", "total", "cpu")
            label = f"{phase}, R² = {line['r2']:.4f}" if grows else phase
            axis.plot(x, y, "o", color=color, markersize=5, label=label)
            ends = np.array([0, x.max()])
            axis.plot(ends, line["slope"] * ends + line["intercept"], "-", color=color, linewidth=1)
        axis.set(xlabel=title, ylabel="seconds", xlim=(0, None), ylim=(0, None))
        axis.legend(loc="upper left", frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("awq_lite, hidden 512, feed-forward 1408: points are medians, lines are least-squares fits")
    figure.savefig(path, dpi=130)
    return fits


def draw_memory(files: list[Path], path: Path) -> None:
    """Memory over time of the last repeat of each run: a row for each file, one scale in each row."""
    rows = [json.loads(file.read_text()) for file in files]
    columns = max(len(row["runs"]) for row in rows)
    size = (5.2 * columns, 3.2 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, layout="constrained", squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        highest = max(run["repeats"][-1]["peak_mb"] for run in row["runs"].values()) / 1000
        for axis, (name, made) in zip(line, row["runs"].items(), strict=False):
            run = made["repeats"][-1]
            seconds, anonymous, pages = np.array(run["samples"]).T / [[1], [1000], [1000]]
            axis.stackplot(seconds, anonymous, pages, colors=["#1f77b4", "#c6dbef"], labels=["own", "pages of files"])
            peak = run["peak_mb"] / 1000
            axis.axhline(peak, color="#d62728", linewidth=1, linestyle="--", label=f"peak {peak:.2f} GB")
            _mark_phases(axis, run)
            title = f"{name.replace('_', ' ', 1)}, a model of {row['model_mb'] / 1000:.1f} GB"
            axis.set(title=title, xlabel="seconds", ylabel="GB resident", xlim=(0, seconds.max()))
            axis.set_ylim(0, 1.4 * highest)
            axis.legend(loc="upper left", frameon=False, ncols=3, fontsize="small")
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _mark_phases(axis: Any, run: dict[str, Any]) -> None:
    """Where each phase ends; what comes before the first is the start of Python and its imports."""
    if "report" not in run:
        return
    seconds = run["report"]["seconds"]
    at = run["wall_seconds"] - seconds["total"]
    for phase in ("data", "load", "calibrate", "search", "write"):
        start, at = at, at + seconds[phase]
        axis.axvline(at, ymax=0.85, color="#999999", linewidth=0.6)
        if seconds[phase] > 0.06 * run["wall_seconds"]:
            axis.text(
                (start + at) / 2, 0.76, phase, transform=axis.get_xaxis_transform(), ha="center", fontsize="small"
            )


def main(folder: Path) -> None:
    path = folder / "scaling.json"
    if path.is_file():
        result = json.loads(path.read_text())
        result["fits"] = draw_scaling(result, folder / "scaling.png")
        path.write_text(json.dumps(result) + "\n")
    files = [folder / name for name in ("8gb.json", "2.5gb.json") if (folder / name).is_file()]
    if files:
        draw_memory(files, folder / "memory.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
