"""The terminal output of a run: progress bars, the summary of a run, and that of a dry run."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxq.evaluation.accuracy import Evaluation
from jaxq.evaluation.outputs import OutputComparison
from jaxq.graph.skipped import Skipped
from jaxq.harness.records import Report
from jaxq.pipeline.dry_run import Estimate
from jaxq.pipeline.outcome import Outcome
from jaxq.progress import Progress as ProgressCallback
from jaxq.search.result import Layer


@contextmanager
def progress_bars(console: Console) -> Iterator[ProgressCallback]:
    """Shows a bar for each phase; nothing if the output is not a terminal."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def begin(label: str, total: int, /) -> Callable[[], None]:
            task = bars.add_task(label, total=total)
            return lambda: bars.advance(task)

        yield begin


def print_report(report: Report, folder: Path, console: Console) -> None:
    """Prints the summary of a run."""
    for line in _title(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if isinstance(report.evaluation, Evaluation):
        console.print(_accuracy(report.evaluation))
    elif isinstance(report.evaluation, OutputComparison):
        console.print(_outputs(report.evaluation))
        for line in _remarks(report.evaluation):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    else:
        console.print(f"accuracy: not measured, {report.evaluation}", highlight=False, markup=False)
    for line in _facts(report, folder):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_estimate(estimate: Estimate, method: str, notes: Sequence[str], console: Console) -> None:
    """Prints the summary of a dry run."""
    for line in (*_planned(estimate, method), *(f"note: {note}" for note in notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _planned(estimate: Estimate, method: str) -> Iterator[str]:
    yield "dry run: nothing is quantized; results of earlier runs on disk are not counted"
    chosen = "dtypes and block sizes chosen weight by weight"
    yield f"{method}, {_kinds(estimate.layers) if estimate.budget is None else chosen}"
    before, after = estimate.source_bytes / 1e6, estimate.target_bytes / 1e6
    yield f"file: {before:.2f} MB -> about {after:.2f} MB ({after / before:.0%})"
    share = f"{estimate.quantized_bytes / estimate.weight_bytes:.1%}"
    bits = f"{estimate.bits_per_weight:.3f} bits each"
    yield f"would be quantized: {len(estimate.layers)} weights, {share} of weight bytes, {bits}"
    yield from _skipped(estimate.skipped)
    seconds = ", ".join(f"{name} {s:.1f}" for name, s in estimate.seconds.items() if s >= 0.05)
    probe = f"extrapolated from {estimate.probed} of {estimate.groups} sibling groups"
    yield f"seconds: about {sum(estimate.seconds.values()):.0f} in all ({seconds}), {probe}"
    yield f"peak memory before evaluation: about {estimate.peak_mb:.0f} MB"
    for pattern in estimate.unmatched:
        yield f"note: the pattern {pattern!r} matches no weight"


def _kinds(layers: Sequence[Layer]) -> str:
    kinds = Counter((layer.dtype, layer.block_size, layer.scale_dtype) for layer in layers)
    return ", ".join(_kind(*kind, count, len(kinds)) for kind, count in kinds.most_common())


def _title(report: Report) -> Iterator[str]:
    outcome = report.outcome
    yield f"{report.method}, {_kinds(outcome.layers)}"
    before, after = outcome.source_bytes / 1e6, outcome.target_bytes / 1e6
    yield f"file: {before:.2f} MB -> {after:.2f} MB ({after / before:.0%})"
    share = f"{outcome.quantized_bytes / outcome.weight_bytes:.1%}"
    yield f"quantized: {len(outcome.layers)} weights, {share} of weight bytes, {outcome.bits_per_weight:.3f} bits each"


def _kind(dtype: str, block_size: int, scale_dtype: str, count: int, kinds: int) -> str:
    rows = "one block per channel" if block_size == -1 else f"blocks of {block_size}"
    scales = f" with {scale_dtype} scales" if "int" in dtype and scale_dtype != "float32" else ""
    return f"{dtype} in {rows}{scales}" + (f" ({count} weight{'s' * (count > 1)})" if kinds > 1 else "")


def _accuracy(evaluation: Evaluation) -> Table:
    figures = list(evaluation.runtimes.values())
    table = Table(title=f"on {evaluation.tokens} held-out tokens", title_justify="left")
    table.add_column("")
    for name in ("float", *evaluation.runtimes):
        table.add_column(name, justify="right")
    table.add_row("perplexity", f"{evaluation.reference:.3f}", *(f"{f.perplexity:.3f}" for f in figures))
    table.add_row("KL to float (nats)", "", *(f"{f.kl:.5f}" for f in figures))
    table.add_row("top-1 agreement", "", *(f"{f.top1:.2%}" for f in figures))
    return table


def _outputs(comparison: OutputComparison) -> Table:
    table = Table(title=f"on {comparison.samples} held-out samples", title_justify="left")
    table.add_column("")
    for setting in comparison.outputs[0].runtimes:
        table.add_column(setting, justify="right")
    for output in comparison.outputs[:_MOST_OUTPUTS]:
        figures = list(output.runtimes.values())
        table.add_row(f"{output.name}: mean cosine", *(f"{f.cosine:.5f}" for f in figures))
        table.add_row(f"{output.name}: smallest cosine", *(f"{f.cosine_min:.5f}" for f in figures))
        table.add_row(f"{output.name}: relative error", *(f"{f.relative_error:.4f}" for f in figures))
    return table


_MOST_OUTPUTS = 4


def _remarks(comparison: OutputComparison) -> Iterator[str]:
    if (more := len(comparison.outputs) - _MOST_OUTPUTS) > 0:
        yield f"{more} more outputs: see report.json"
    for output in comparison.outputs:
        if output.zero_rows:
            yield f"{output.name}: {output.zero_rows} of {output.rows} rows are zero and have no cosine"
        if output.nonfinite_rows:
            yield f"{output.name}: {output.nonfinite_rows} rows of the float model are NaN or infinite: not compared"
        for setting, figures in output.runtimes.items():
            if figures.nonfinite_rows:
                yield f"{output.name}: quantization made {figures.nonfinite_rows} rows NaN or infinite ({setting})"
    for reason in dict.fromkeys(comparison.not_compared.values()):
        names = [name for name, why in comparison.not_compared.items() if why == reason]
        shown = names[0] if len(names) == 1 else f"{len(names)} outputs"
        yield f"not compared: {shown}, {reason}"


def _facts(report: Report, folder: Path) -> Iterator[str]:
    outcome = report.outcome
    if (error := _median_error(outcome)) is not None:
        yield f"relative output error of the weights, median: {error:.4f}"
    yield from _skipped(outcome.skipped)
    seconds = {phase.name: phase.seconds for phase in report.phases}
    shown = ", ".join(f"{name} {s:.1f}" for name, s in seconds.items() if s >= 0.05)
    peak = max(phase.peak_mb for phase in outcome.phases)
    yield f"seconds: {report.total_seconds:.1f} in all ({shown}); peak memory before evaluation {peak:.0f} MB"
    for note in report.notes:
        yield f"note: {note}"
    yield f"{folder}/{{model.onnx, report.json, layers.csv}}"


def _skipped(weights: Sequence[Skipped]) -> Iterator[str]:
    """One line for each reason, the most bytes first."""
    bytes_by_reason = Counter[str]()
    for weight in weights:
        bytes_by_reason[weight.reason] += weight.nbytes
    for reason, nbytes in bytes_by_reason.most_common():
        names = [weight.name for weight in weights if weight.reason == reason]
        yield f"skipped: {names[0] if len(names) == 1 else f'{len(names)} weights'}, {nbytes / 1e6:.2f} MB: {reason}"


def _median_error(outcome: Outcome) -> float | None:
    errors = sorted(x.relative_output_error for x in outcome.layers if x.relative_output_error is not None)
    return errors[len(errors) // 2] if errors else None
