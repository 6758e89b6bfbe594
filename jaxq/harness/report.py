"""The summary of a run in the terminal."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from jaxq.evaluation.accuracy import Evaluation
from jaxq.evaluation.outputs import OutputComparison
from jaxq.forms.registry import FORMS
from jaxq.graph.skipped import Skipped
from jaxq.harness.data import Origin
from jaxq.harness.records import Report
from jaxq.harness.text_sample import escaped
from jaxq.pipeline.outcome import Outcome
from jaxq.search.result import Layer

LEVELS = "level 1: products in float32; default: onnxruntime's own accuracy level, which rounds activations to 8 bits"
"""The columns of the table of accuracy."""

_DEFAULT = "default"
_MAX_OUTPUTS = 4
"""Outputs in the terminal; report.json has all."""


def print_report(report: Report, folder: Path, console: Console) -> None:
    """Prints the summary of a run."""
    for line in _title(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if isinstance(report.evaluation, Evaluation):
        console.print(_accuracy(report.evaluation, report.origins["evaluation"]))
        if _DEFAULT in report.evaluation.runtimes:
            console.print(LEVELS, highlight=False, markup=False, soft_wrap=True)
    elif isinstance(report.evaluation, OutputComparison):
        console.print(_outputs(report.evaluation))
        if _DEFAULT in report.evaluation.outputs[0].runtimes:
            console.print(LEVELS, highlight=False, markup=False, soft_wrap=True)
        for line in _remarks(report.evaluation):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    else:
        console.print(f"accuracy: not measured, {report.evaluation}", highlight=False, markup=False)
    for line in (*_sample_lines(report), *_facts(report, folder)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _sample_lines(report: Report) -> Iterator[str]:
    """The continuations of both models, one line each."""
    if report.sample is not None:
        yield f"text after: {escaped(report.sample.prompt)}"
        yield f"  float: {escaped(report.sample.float_text)}"
        yield f"  quantized: {escaped(report.sample.quantized_text)}"


def formats_line(layers: Sequence[Layer]) -> str:
    """The formats of all weights, the most frequent first: "int4 in blocks of 128"."""
    counts = Counter((layer.dtype, layer.block_size, layer.scale_dtype) for layer in layers)
    if len(counts) == 1:
        return _format_words(*next(iter(counts)))
    return ", ".join(
        f"{_format_words(*fmt)} ({count} weight{'s' * (count > 1)})" for fmt, count in counts.most_common()
    )


def _title(report: Report) -> Iterator[str]:
    outcome = report.outcome
    yield f"{report.method}, {formats_line(outcome.layers)}"
    before, after = outcome.source_bytes / 1e6, outcome.target_bytes / 1e6
    yield f"file: {before:.2f} MB -> {after:.2f} MB ({after / before:.0%})"
    share = f"{outcome.quantized_source_bytes / outcome.weight_bytes:.1%}"
    yield f"quantized: {len(outcome.layers)} weights, {share} of weight bytes, {outcome.bits_per_weight:.3f} bits each"


def _format_words(dtype: str, block_size: int, scale_dtype: str) -> str:
    blocks = "one block per channel" if block_size == -1 else f"blocks of {block_size}"
    scales = f" with {scale_dtype} scales" if "int" in dtype and scale_dtype != "float32" else ""
    return f"{dtype} in {blocks}{scales}"


def _accuracy(evaluation: Evaluation, origin: Origin) -> Table:
    """Figures of a language model; on text that the model wrote, its perplexity says nothing and is left out."""
    figures = list(evaluation.runtimes.values())
    if origin.drawn_share:
        title = f"KL on {evaluation.tokens} tokens of drawn text, other seeds"
    else:
        title = f"accuracy on {evaluation.tokens} held-out tokens"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("float", *evaluation.runtimes):
        table.add_column(name, justify="right")
    if not origin.drawn_share:
        table.add_row("perplexity", f"{evaluation.float_perplexity:.3f}", *(f"{f.perplexity:.3f}" for f in figures))
    table.add_row("KL to float (nats)", "", *(f"{f.kl:.5f}" for f in figures))
    table.add_row("top-1 agreement", "", *(f"{f.top1:.2%}" for f in figures))
    return table


def _outputs(comparison: OutputComparison) -> Table:
    table = Table(title=f"accuracy on {comparison.samples} held-out samples", title_justify="left")
    table.add_column("")
    for setting in comparison.outputs[0].runtimes:
        table.add_column(setting, justify="right")
    for output in comparison.outputs[:_MAX_OUTPUTS]:
        figures = list(output.runtimes.values())
        table.add_row(f"{output.name}: mean cosine", *(f"{f.cosine:.5f}" for f in figures))
        table.add_row(f"{output.name}: smallest cosine", *(f"{f.cosine_min:.5f}" for f in figures))
        table.add_row(f"{output.name}: relative error", *(f"{f.relative_error:.4f}" for f in figures))
    return table


def _remarks(comparison: OutputComparison) -> Iterator[str]:
    if (more := len(comparison.outputs) - _MAX_OUTPUTS) > 0:
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
        yield f"median relative output error of a weight: {error:.4f}"
    yield from origin_lines(report.origins)
    yield from skipped_lines(outcome.skipped)
    seconds = {phase.name: phase.seconds for phase in report.phases}
    shown = ", ".join(f"{name} {s:.1f}" for name, s in seconds.items() if s >= 0.05)
    peak = max(phase.peak_mb for phase in outcome.phases)
    yield f"seconds: {report.total_seconds:.1f} in total ({shown}); peak memory before evaluation {peak:.0f} MB"
    for note in report.notes:
        yield f"note: {note}"
    yield f"written: {folder}/{{model.onnx, report.json, layers.csv, run.log}}"
    yield f"next: {_run_words(report, folder)}jaxq compare {shlex.quote(str(folder))} RUN shows it beside another run"


def _run_words(report: Report, folder: Path) -> str:
    """How to run the model; empty for a form that onnxruntime does not run."""
    if (folder / "genai_config.json").is_file():
        return f"onnxruntime_genai.Model({str(folder)!r}) loads it in Python; "
    form = cast(Mapping[str, str], report.config["form"])["name"]
    path = str(folder / "model.onnx")
    return f"onnxruntime.InferenceSession({path!r}) runs it in Python; " if FORMS[form].runs else ""


def origin_lines(origins: Mapping[str, Origin]) -> Iterator[str]:
    """One line for each kind of data that a run has: where it comes from."""
    for name, origin in origins.items():
        if origin != Origin():
            yield f"{name} data: {origin.sources}"


def skipped_lines(weights: Sequence[Skipped]) -> Iterator[str]:
    """One line for each reason, the most bytes first."""
    bytes_by_reason = Counter[str]()
    for weight in weights:
        bytes_by_reason[weight.reason] += weight.nbytes
    for reason, nbytes in bytes_by_reason.most_common():
        names = [weight.name for weight in weights if weight.reason == reason]
        yield f"skipped: {names[0] if len(names) == 1 else f'{len(names)} weights'}, {nbytes / 1e6:.2f} MB: {reason}"


def unmatched_note(pattern: str) -> str:
    """A note on a pattern of a preset or an experiment that matches no weight; the user's own are refused."""
    return f"the pattern {pattern!r} matches no weight"


def _median_error(outcome: Outcome) -> float | None:
    errors = sorted(x.relative_output_error for x in outcome.layers if x.relative_output_error is not None)
    return errors[len(errors) // 2] if errors else None
