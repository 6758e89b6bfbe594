"""Draws the README's figure: loss over the float model against bits per weight, jaxq beside its peers.

    python experiments/bench/figure.py        # needs the extra plot

Reads ``results/accuracy.json`` and ``results/bits.json`` (SmolLM2-135M), writes ``results/figure.svg``. Its colours
can be read on a white and on a dark page.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib  # pyright: ignore[reportMissingImports]

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot as plt  # pyright: ignore[reportMissingImports]

RESULTS = Path(__file__).parent / "results"
WEIGHTS = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
"""Numbers in the 210 quantized weights of SmolLM2-135M."""
BUDGETS = ("4.125 bits", "4.25 bits", "4.37 bits", "4.5 bits", "5.31 bits")
TEXTS = {"like": "text like the calibration text", "unlike": "prose unlike it"}
GREY, BLUE, ORANGE, GREEN = "#7d8590", "#3b82f6", "#e8710a", "#2da44e"


@dataclass(frozen=True)
class Row:
    """A row of accuracy.json in the figure: its label, and where that stands beside the mark, in points."""

    key: str
    label: str
    offset: tuple[float, float] = (7, -3)


JAXQ = (
    Row("jaxq_awq_full", "awq_full", (-46, -3)),
    Row("jaxq_gptq", "gptq", (-27, -3)),
    Row("jaxq_best", "best", (-27, -3)),
)
NVFP4 = (Row("jaxq_nvfp4_rtn", "NVFP4, rounded", (7, -7)), Row("jaxq_nvfp4_best", "NVFP4, best"))
PEERS = (
    Row("modelopt_rtn_dq", "round to nearest (ModelOpt, jaxq)"),
    Row("modelopt_awq_lite_cached", "ModelOpt awq_lite"),
    Row("modelopt_awq_full_cached", "ModelOpt awq_full", (7, -6)),
    Row("onnxruntime_rtn", "onnxruntime RTN", (-30, 7)),
    Row("onnxruntime_hqq", "onnxruntime HQQ"),
    Row("onnxruntime_k_quant", "onnxruntime k_quant", (-60, -13)),
)


def losses(draws: dict[str, Any], text: str) -> np.ndarray:
    """Nats over the float model, one number for each draw of the calibration text."""
    quality = [draw["quality"][text] for draw in draws.values()]
    return np.array([np.log(figures["perplexity"] / figures["float"]["perplexity"]) for figures in quality])


def bits(draws: dict[str, Any], float_mb: float) -> float:
    """Bits per weight: jaxq's report says them; a peer's come from the size of its file."""
    draw = draws["0"]
    return draw.get("bits_per_weight") or (draw["file_mb"] - float_mb) * 8e6 / WEIGHTS


def draw_points(axis: Any, points: Sequence[tuple[float, np.ndarray]], style: dict[str, Any]) -> None:
    """Means, and bars from the least to the greatest draw."""
    means = np.array([values.mean() for _, values in points])
    below = means - [values.min() for _, values in points]
    above = [values.max() for _, values in points] - means
    axis.errorbar([x for x, _ in points], means, yerr=[below, above], capsize=2, elinewidth=1, **style)


def draw_rows(axis: Any, rows: Sequence[Row], runs: dict[str, Any], text: str, style: dict[str, Any]) -> None:
    """Marks with their labels."""
    reference = runs["jaxq_rtn_dq"]["0"]  # the float tensors of the file, the same for all tools
    float_mb = reference["file_mb"] - reference["bits_per_weight"] * WEIGHTS / 8e6
    points = [(bits(runs[row.key], float_mb), losses(runs[row.key], text)) for row in rows]
    draw_points(axis, points, style)
    for row, (x, values) in zip(rows, points, strict=True):
        axis.annotate(
            row.label,
            (x, values.mean()),
            xytext=row.offset,
            textcoords="offset points",
            color=style["color"],
            fontsize=8.5,
        )


def draw(axis: Any, accuracy: dict[str, Any], curve: dict[str, Any], text: str) -> None:
    """One panel."""
    marks = {"fmt": "o", "markersize": 5}
    draw_rows(axis, PEERS, accuracy, text, {**marks, "color": ORANGE, "label": "ModelOpt, onnxruntime"})
    draw_rows(axis, JAXQ, accuracy, text, {**marks, "color": BLUE, "label": "jaxq, blocks of 128"})
    draw_rows(axis, NVFP4, accuracy, text, {**marks, "color": GREEN, "label": "jaxq, NVFP4"})
    points = [(curve[name]["0"]["bits_per_weight"], losses(curve[name], text)) for name in BUDGETS]
    style = {
        "fmt": "o-",
        "markersize": 5,
        "color": BLUE,
        "markerfacecolor": "none",
        "label": "jaxq best, a budget of bits",
    }
    draw_points(axis, points, style)
    axis.set(title=TEXTS[text], xlabel="bits per weight", yscale="log", ylim=(0.013, 1), xlim=(4.02, 5.45))
    axis.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1], ["0.02", "0.05", "0.1", "0.2", "0.5", "1"])
    axis.minorticks_off()
    axis.grid(alpha=0.25, color=GREY)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    accuracy = json.loads((RESULTS / "accuracy.json").read_text())["runs"]
    curve = json.loads((RESULTS / "bits.json").read_text())["runs"]
    greys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
    settings: dict[Any, Any] = {**dict.fromkeys(greys, GREY), "svg.hashsalt": "jaxq", "font.size": 9}
    with plt.rc_context(settings):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharey=True)
        for axis, text in zip(axes, TEXTS, strict=True):
            draw(axis, accuracy, curve, text)
        axes[0].set_ylabel("loss over the float model (nats)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(RESULTS / "figure.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
