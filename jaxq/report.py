"""What a run shows in the terminal: progress, its table, and the table of a sweep."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxq.estimate import Estimate
from jaxq.evaluation import Evaluation
from jaxq.graph import Declined
from jaxq.output_errors import OutputComparison
from jaxq.progress import Progress as ProgressCallback
from jaxq.records import Report
from jaxq.results import Layer, Outcome


@contextmanager
def progress_bars(console: Console) -> Iterator[ProgressCallback]:
    """A bar for each phase that is begun; nothing where the output is no terminal."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def begin(label: str, total: int, /) -> Callable[[], None]:
            task = bars.add_task(label, total=total)
            return lambda: bars.advance(task)

        yield begin


def print_report(report: Report, folder: Path, console: Console) -> None:
    """The summary of one run."""
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
    """What a dry run found."""
    for line in (*_planned(estimate, method), *(f"note: {note}" for note in notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _planned(estimate: Estimate, method: str) -> Iterator[str]:
    yield "dry run: nothing is quantized; what earlier runs left on disk is not counted"
    chosen = "dtypes and block sizes chosen weight by weight"
    yield f"{method}, {_kinds(estimate.layers) if estimate.budget is None else chosen}"
    before, after = estimate.source_bytes / 1e6, estimate.target_bytes / 1e6
    yield f"file: {before:.2f} MB -> about {after:.2f} MB ({after / before:.0%})"
    share = f"{estimate.quantized_bytes / estimate.weight_bytes:.1%}"
    bits = f"{estimate.bits_per_weight:.3f} bits each"
    yield f"would be quantized: {len(estimate.layers)} weights, {share} of weight bytes, {bits}"
    yield from _left_alone(estimate.declined)
    seconds = ", ".join(f"{name} {s:.1f}" for name, s in estimate.seconds.items() if s >= 0.05)
    probe = f"judged from {estimate.probed} of {estimate.groups} groups of siblings"
    yield f"seconds: about {sum(estimate.seconds.values()):.0f} in all ({seconds}), {probe}"
    yield f"peak memory before evaluation: about {estimate.peak_mb:.0f} MB"
    for pattern in estimate.unmatched:
        yield f"note: the pattern {pattern!r} fits no weight"


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
        table.add_row(f"{output.name}: least cosine", *(f"{f.cosine_min:.5f}" for f in figures))
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
            yield f"{output.name}: {output.nonfinite_rows} rows of the float model are NaN or infinite and left out"
        for setting, figures in output.runtimes.items():
            if figures.nonfinite_rows:
                yield f"{output.name}: quantization made {figures.nonfinite_rows} rows NaN or infinite ({setting})"
    for reason in dict.fromkeys(comparison.passed_over.values()):
        names = [name for name, why in comparison.passed_over.items() if why == reason]
        shown = names[0] if len(names) == 1 else f"{len(names)} outputs"
        yield f"not compared: {shown}, {reason}"


def _facts(report: Report, folder: Path) -> Iterator[str]:
    outcome = report.outcome
    if (error := _median_error(outcome)) is not None:
        yield f"relative output error of the weights, median: {error:.4f}"
    yield from _left_alone(outcome.declined)
    seconds = {phase.name: phase.seconds for phase in report.phases}
    shown = ", ".join(f"{name} {s:.1f}" for name, s in seconds.items() if s >= 0.05)
    peak = max(phase.peak_mb for phase in outcome.phases)
    yield f"seconds: {report.total_seconds:.1f} in all ({shown}); peak memory before evaluation {peak:.0f} MB"
    for note in report.notes:
        yield f"note: {note}"
    yield f"{folder}/{{model.onnx, report.json, layers.csv}}"


def _left_alone(declined_weights: Sequence[Declined]) -> Iterator[str]:
    left = Counter[str]()
    for declined in declined_weights:
        left[declined.reason] += declined.nbytes
    for reason, nbytes in left.most_common():
        names = [d.name for d in declined_weights if d.reason == reason]
        yield f"left alone: {names[0] if len(names) == 1 else f'{len(names)} weights'}, {nbytes / 1e6:.2f} MB: {reason}"


def _median_error(outcome: Outcome) -> float | None:
    errors = sorted(x.relative_output_error for x in outcome.layers if x.relative_output_error is not None)
    return errors[len(errors) // 2] if errors else None


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
