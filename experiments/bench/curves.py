"""Two curves of SmolLM2-135M with `best`: perplexity against calibration tokens, and against the size of the weights.

    python experiments/bench/curves.py tokens --models DIR --prose FOLDER --out experiments/bench/results/tokens.json
    python experiments/bench/curves.py bits --models DIR --prose FOLDER --out experiments/bench/results/bits.json

DIR and FOLDER as for `accuracy.py`. Each point is one run with one draw of the calibration text (seed 0); what is there
already in the results is not run again. ``tokens`` has 512 to 65,536 of them, of which about 61,000 are different, in
blocks of 32 with float8 scales. ``bits`` has budgets (`method.bits_per_weight`) and fixed patterns beside them: one
dtype and block size for all weights, scales in float8 if not said otherwise, and 8 bits for the weights that a rule of
thumb names. Each leaves a picture beside its results.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import matplotlib  # pyright: ignore[reportMissingImports]

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]
import numpy as np
from judge import Case, Judge, add_arguments
from runs import Run

TOKENS = (512, 2048, 8192, 32768, 65536)
BUDGETS = (4.125, 4.25, 4.5, 5.0)
FLOAT8 = "scale_dtype=float8"
PATTERNS = {
    "int4, 128, float32 scales": (),
    "int4, 64": ("block_size=64", FLOAT8),
    "int4, 32": ("block_size=32", FLOAT8),
    "int4, 16": ("block_size=16", FLOAT8),
    "int4, 32, values in 8 bits": ("block_size=32", FLOAT8, "mixed.int8=[*v_proj*]"),
}


def best(name: str, options: tuple[str, ...] = ()) -> Run:
    """A run of `best`."""
    return Run(name, "jaxq", "jax", name, method="best", options=options)


def cases(what: str) -> list[Case]:
    """The points of a curve."""
    if what == "tokens":
        return [Case(best("best", ("block_size=32", FLOAT8)), 0, tokens // 256) for tokens in TOKENS]
    budgets = {f"{bits} bits": (f"method.bits_per_weight={bits}",) for bits in BUDGETS}
    return [Case(best(name, options), 0, 32) for name, options in (budgets | PATTERNS).items()]


def log_loss(made: dict[str, Any], text: str) -> float:
    """Nats over the float model."""
    figures = made["quality"][text]
    return float(np.log(figures["perplexity"] / figures["float"]["perplexity"]))


def divergence(made: dict[str, Any], text: str) -> float:
    """KL divergence to the float model, in nats."""
    return made["quality"][text]["kl"]


MEASURES = {"loss over float (nats)": log_loss, "KL to float (nats)": divergence}
Points = list[tuple[Case, dict[str, Any]]]


def plot(what: str, points: Points, path: Path) -> None:
    """A row of panels for each measure, a column for each text."""
    figure, rows = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True, sharey="row")
    for panels, (label, measure) in zip(rows, MEASURES.items(), strict=True):
        for panel, text in zip(panels, ("like", "unlike"), strict=True):
            values = [measure(made, text) for _, made in points]
            (_plot_tokens if what == "tokens" else _plot_bits)(panel, points, values)
            panel.set(ylim=(0, None))
            panel.grid(alpha=0.3)
        panels[0].set(ylabel=label)
    for panel, text in zip(rows[0], ("like", "unlike"), strict=True):
        panel.set(title=f"text {text} the calibration's")
    for panel in rows[1]:
        panel.set(xlabel="calibration tokens" if what == "tokens" else "bits per weight")
    if what == "bits":
        rows[0][1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _plot_tokens(panel: Any, points: Points, values: list[float]) -> None:
    counts = [256 * case.rows for case, _ in points]
    panel.plot(counts, values, "o-")
    panel.set(xscale="log")
    panel.set_xticks(counts, [f"{count:,}" for count in counts])
    panel.minorticks_off()


def _plot_bits(panel: Any, points: Points, values: list[float]) -> None:
    named = [(case.run.name, made["bits_per_weight"], v) for (case, made), v in zip(points, values, strict=True)]
    chosen = sorted((bits, v) for name, bits, v in named if name not in PATTERNS)
    panel.plot([bits for bits, _ in chosen], [v for _, v in chosen], "o-", label="chosen under a budget")
    for name, bits, value in named:
        if name in PATTERNS:
            panel.plot([bits], [value], "x", label=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokens", "bits"))
    add_arguments(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="curves-") as folder:
        judge = Judge(args, Path(folder))
        points = [(case, judge.judge(case)) for case in cases(args.what)]
    points = [(case, made) for case, made in points if "quality" in made]
    plot(args.what, points, args.out.with_suffix(".png"))
    for case, made in points:
        losses = ", ".join(
            f"{text} {log_loss(made, text):.4f} (KL {divergence(made, text):.4f})" for text in made["quality"]
        )
        print(f"{case.run.name}, {256 * case.rows} tokens: {made['bits_per_weight']:.3f} bits, {losses}")


if __name__ == "__main__":
    main()
