"""The summary of a dry run in the terminal."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from jaxq.harness.data import Origin
from jaxq.harness.report import formats_line, origin_lines, skipped_lines, unmatched_note
from jaxq.pipeline.dry_run import Estimate


def print_estimate(
    estimate: Estimate, method: str, origins: Mapping[str, Origin], notes: Sequence[str], console: Console
) -> None:
    """Prints the summary of a dry run."""
    for line in (*_estimate_lines(estimate, method), *origin_lines(origins), *(f"note: {note}" for note in notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _estimate_lines(estimate: Estimate, method: str) -> Iterator[str]:
    yield "dry run: nothing is quantized; the estimate does not count on results of earlier runs"
    chosen = "dtypes and block sizes chosen weight by weight"
    yield f"{method}, {formats_line(estimate.layers) if estimate.budget is None else chosen}"
    before, after = estimate.source_bytes / 1e6, estimate.target_bytes / 1e6
    yield f"file: {before:.2f} MB -> about {after:.2f} MB ({after / before:.0%})"
    share = f"{estimate.quantized_source_bytes / estimate.weight_bytes:.1%}"
    bits = f"{estimate.bits_per_weight:.3f} bits each"
    yield f"would be quantized: {len(estimate.layers)} weights, {share} of weight bytes, {bits}"
    yield from skipped_lines(estimate.skipped)
    seconds = ", ".join(f"{name} {s:.1f}" for name, s in estimate.seconds.items() if s >= 0.05)
    probe = f"extrapolated from {estimate.probed} of {estimate.groups} sibling groups"
    yield f"seconds: about {sum(estimate.seconds.values()):.0f} in total ({seconds}), {probe}"
    yield f"peak memory before evaluation: about {estimate.peak_mb:.0f} MB"
    for pattern in estimate.unmatched:
        yield f"note: {unmatched_note(pattern)}"
