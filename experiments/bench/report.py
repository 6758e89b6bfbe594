"""Medians, extrapolation, ratios, and the table of a benchmark's results."""

import statistics
from typing import Any

from runs import PAIRS, RUNS, SUBSETS, WEIGHTS

MEASURED = ("wall_seconds", "cpu_seconds", "peak_mb", "file_mb")


def medians(repeats: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each figure over the repeats that ended well."""
    good = [r for r in repeats if r["returncode"] == 0]
    return {key: round(statistics.median(r[key] for r in good), 3) for key in MEASURED if good}


def extrapolate(runs: dict[str, Any]) -> dict[str, Any] | None:
    """Time of ModelOpt's default path on all weights: a line through the times of two subsets of whole layers.

    All layers are alike, so the line's slope is the cost of a weight and its intercept the fixed cost.
    """
    few, many = SUBSETS
    small, large = (runs.get(f"modelopt_awq_lite_{n}", {}).get("median") for n in (few, many))
    if not small or not large:
        return None
    found: dict[str, Any] = {"method": f"line through {few} and {many} of {WEIGHTS} weights", "extrapolated": True}
    for key in ("wall_seconds", "cpu_seconds"):
        each = (large[key] - small[key]) / (many - few)
        found[key] = round(small[key] + each * (WEIGHTS - few), 1)
        found[f"{key}_per_weight"] = round(each, 3)
    return found


def figures(result: dict[str, Any], name: str) -> dict[str, float]:
    """A run's medians and quality by name; an extrapolated time stands in for a run that was not made."""
    run = result["runs"].get(name, {})
    found = dict(run.get("median", {}))
    if not found and name == "modelopt_awq_lite_default" and result.get("extrapolated"):
        found = {key: result["extrapolated"][key] for key in ("wall_seconds", "cpu_seconds")}
    for level in ("level1", "level4"):
        quality = run.get("quality", {}).get(level, {})
        found.update({f"{key}_{level}": quality[key] for key in ("perplexity", "kl", "top1") if key in quality})
    return found


def ratios(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """jaxq's figures divided by the peer's, where both are there."""
    found = {}
    for own, peer in PAIRS:
        ours, theirs = figures(result, own), figures(result, peer)
        both = {k: round(ours[k] / theirs[k], 4) for k in ours if theirs.get(k)}
        if both:
            found[f"{own} / {peer}"] = both
    return found


def table(result: dict[str, Any]) -> str:
    """The results as a markdown table, one row a run."""
    head = ["", "s", "CPU s", "peak MB", "file MB", "ppl", "KL", "top-1", "ppl at level 4"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    fp32 = result.get("fp32", {}).get("level1")
    if fp32:
        lines.append(
            f"| fp32 | - | - | - | {result['config']['model_mb']:.1f} | {fp32['perplexity']:.2f} | 0 | 1 | - |"
        )
    for name, run in RUNS.items():
        made = result["runs"].get(name)
        if made is None and not figures(result, name):
            continue
        label = run.label + ("" if made else " (extrapolated)")
        if made and made.get("error"):
            lines.append(f"| {label} | {made['error'][:80]} |" + " |" * (len(head) - 2))
            continue
        lines.append(f"| {label} | " + " | ".join(_cells(figures(result, name))) + " |")
    return "\n".join(lines)


def _cells(f: dict[str, float]) -> list[str]:
    shown = (
        ("wall_seconds", ".1f"), ("cpu_seconds", ".1f"), ("peak_mb", ".0f"), ("file_mb", ".1f"),
        ("perplexity_level1", ".2f"), ("kl_level1", ".4f"), ("top1_level1", ".3f"), ("perplexity_level4", ".2f"),
    )  # fmt: skip
    return [format(f[key], spec) if key in f else "-" for key, spec in shown]
