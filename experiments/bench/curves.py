"""Two curves with `best`, of SmolLM2-135M or with `--model embedded`: perplexity by calibration tokens and by size.

    python experiments/bench/curves.py tokens --models DIR --prose FOLDER --out experiments/bench/results/tokens.json
    python experiments/bench/curves.py bits --models DIR --prose FOLDER --out experiments/bench/results/bits.json

DIR and FOLDER as for `accuracy.py`. Each point is the mean of a run for each draw of the calibration text (`--seeds`),
its bar the range; runs whose results are in the file already are skipped. ``tokens`` goes from 512 to 65,536 tokens, of
which about 61,000 are different, in blocks of 32 with float8 scales. ``bits`` has budgets (`method.bits_per_weight`)
and, at the same bits, fixed patterns: one dtype and block size for all weights, scales in float8 if not said otherwise,
and 8 bits for the weights that a rule of thumb names. Each leaves a picture beside its results.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib  # pyright: ignore[reportMissingImports]

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]
import numpy as np
from judge import Case, Judge, add_arguments
from runs import Run

TOKENS = (512, 2048, 8192, 32768, 65536)
BUDGETS = (4.125, 4.25, 4.37, 4.5, 5.31)
FLOAT8 = "scale_dtype=float8"
PATTERNS = {
    "int4, 128, float32 scales": (),
    "int4, 64": ("block_size=64", FLOAT8),
    "int4, 32": ("block_size=32", FLOAT8),
    "int4, 16": ("block_size=16", FLOAT8),
    "int4, 32, values in 8 bits": ("block_size=32", FLOAT8, "mixed.int8=[*v_proj*]"),
    "int4, 32, values and down in 8 bits": ("block_size=32", FLOAT8, "mixed.int8=[*v_proj*,*down_proj*]"),
}


def best(name: str, options: tuple[str, ...] = ()) -> Run:
    """A run of `best`."""
    return Run(name, "jaxq", "jax", name, method="best", options=options)


def cases(what: str, seed: int) -> list[Case]:
    """The points of a curve, with one draw."""
    if what == "tokens":
        return [Case(best("best", ("block_size=32", FLOAT8)), seed, tokens // 256) for tokens in TOKENS]
    budgets = {f"{bits} bits": (f"method.bits_per_weight={bits}",) for bits in BUDGETS}
    return [Case(best(name, options), seed, 32) for name, options in (budgets | PATTERNS).items()]


def log_loss(made: dict[str, Any], text: str) -> float:
    """Nats over the float model."""
    figures = made["quality"][text]
    return float(np.log(figures["perplexity"] / figures["float"]["perplexity"]))


def divergence(made: dict[str, Any], text: str) -> float:
    """KL divergence to the float model, in nats."""
    return made["quality"][text]["kl"]


MEASURES = {"loss over float (nats)": log_loss, "KL to float (nats)": divergence}


@dataclass(frozen=True)
class Point:
    """The results of one case, one for each draw of the calibration text."""

    case: Case
    draws: list[dict[str, Any]]

    @property
    def x(self) -> float:
        """Its place along ``bits``."""
        return self.draws[0]["bits_per_weight"]

    def values(self, measure: Callable[[dict[str, Any], str], float], text: str) -> np.ndarray:
        """A measure of each draw."""
        return np.array([measure(made, text) for made in self.draws])


def plot(what: str, points: list[Point], path: Path) -> None:
    """A row of panels for each measure, a column for each text."""
    figure, rows = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True, sharey="row")
    for panels, (label, measure) in zip(rows, MEASURES.items(), strict=True):
        for panel, text in zip(panels, ("like", "unlike"), strict=True):
            values = [point.values(measure, text) for point in points]
            (_plot_tokens if what == "tokens" else _plot_bits)(panel, points, values)
            panel.grid(alpha=0.3)
        panels[0].set(ylabel=label, ylim=(0, None))  # of both: this fixes the top
    for panel, text in zip(rows[0], ("like", "unlike"), strict=True):
        panel.set(title=f"text {text} the calibration's")
    for panel in rows[1]:
        panel.set(xlabel="calibration tokens" if what == "tokens" else "bits per weight")
    if what == "bits":
        figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)


def _bars(panel: Any, places: Sequence[float], values: Sequence[np.ndarray], style: str, label: str | None) -> None:
    """Means, and from the least to the greatest."""
    means = [v.mean() for v in values]
    ranges = [[m - v.min() for m, v in zip(means, values, strict=True)],
              [v.max() - m for m, v in zip(means, values, strict=True)]]  # fmt: skip
    panel.errorbar(places, means, yerr=ranges, fmt=style, capsize=2, elinewidth=1, label=label)


def _plot_tokens(panel: Any, points: list[Point], values: list[np.ndarray]) -> None:
    counts = [256 * point.case.rows for point in points]
    _bars(panel, counts, values, "o-", None)
    panel.set(xscale="log")
    panel.set_xticks(counts, [f"{count:,}" for count in counts])
    panel.minorticks_off()


def _plot_bits(panel: Any, points: list[Point], values: list[np.ndarray]) -> None:
    named = sorted(zip(points, values, strict=True), key=lambda pair: pair[0].x)
    chosen = [(point.x, v) for point, v in named if point.case.run.name not in PATTERNS]
    _bars(panel, [x for x, _ in chosen], [v for _, v in chosen], "o-", "chosen under a budget")
    for point, v in named:
        if point.case.run.name in PATTERNS:
            _bars(panel, [point.x], [v], "x", point.case.run.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokens", "bits"))
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="curves-") as folder:
        judge = Judge(args, Path(folder))
        draws = [[judge.judge(case) for case in cases(args.what, seed)] for seed in range(args.seeds)]
    found = zip(cases(args.what, 0), zip(*draws, strict=True), strict=True)
    points = [Point(case, [made for made in each if "quality" in made]) for case, each in found]
    points = [point for point in points if point.draws]
    plot(args.what, points, args.out.with_suffix(".png"))
    for point in points:
        texts = [
            f"{text} {point.values(log_loss, text).mean():.4f} (KL {point.values(divergence, text).mean():.4f})"
            for text in ("like", "unlike")
        ]
        name, tokens = point.case.run.name, 256 * point.case.rows
        print(f"{name}, {tokens} tokens, {len(point.draws)} draws: {point.x:.3f} bits, {', '.join(texts)}")


if __name__ == "__main__":
    main()
