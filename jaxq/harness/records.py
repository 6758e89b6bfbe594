"""report.json, layers.csv and estimate.json: the results of a run for other programs."""

import csv
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import jax

from jaxq.evaluation.accuracy import Evaluation
from jaxq.evaluation.outputs import OutputComparison
from jaxq.harness.data import Origin
from jaxq.harness.text_sample import TextSample
from jaxq.pipeline.clock import Phase
from jaxq.pipeline.dry_run import Estimate
from jaxq.pipeline.outcome import Outcome
from jaxq.runtime.session import runtime
from jaxq.search.result import Layer
from jaxq.version import __version__

_PACKAGES = ("jax", "jaxlib", "numpy", "onnx", "onnx-ir", "onnxscript", "hydra-core")


@dataclass(frozen=True)
class Report:
    """The results of a run.

    Attributes:
        config: The composed configuration.
        method: The method that ran: the one that ``auto`` chose.
        outcome: The result of the pipeline.
        evaluation: Accuracy on held-out data, or the reason why it was not measured.
        hashes: SHA-256 of model, calibration data, evaluation data and output.
        phases: Wall time and memory of each phase.
        total_seconds: Wall time of the run, without imports.
        overrides: The overrides on the command line.
        origins: Where the data of "calibration" and of "evaluation" comes from.
        sample: Text that both models generate; None where they generate none.
        notes: Sentences that a reader should not miss.
    """

    config: Mapping[str, object]
    method: str
    outcome: Outcome
    evaluation: Evaluation | OutputComparison | str
    hashes: Mapping[str, str]
    phases: tuple[Phase, ...]
    total_seconds: float
    overrides: tuple[str, ...]
    origins: Mapping[str, Origin]
    sample: TextSample | None
    notes: tuple[str, ...]


def write_report(report: Report, folder: Path) -> None:
    """Writes ``report.json`` and ``layers.csv``."""
    _write(folder / "report.json", json.dumps(_plain(report_dict(report)), indent=1) + "\n")
    with (folder / "layers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Layer)])
        writer.writeheader()
        for layer in report.outcome.layers:
            writer.writerow({**asdict(layer), "nodes": " ".join(layer.nodes)})


def write_estimate(
    estimate: Estimate,
    config: Mapping[str, object],
    overrides: Sequence[str],
    folder: Path,
    origins: Mapping[str, Origin],
) -> None:
    """Writes ``estimate.json``."""
    record = {"config": config, "overrides": overrides, "versions": versions(), "device": device()}
    record["data"] = {name: asdict(origin) for name, origin in origins.items()}
    record["estimate"] = asdict(estimate)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "estimate.json", json.dumps(_plain(record), indent=1) + "\n")


def write_failure(message: str, config: Mapping[str, object], overrides: Sequence[str], folder: Path) -> None:
    """Writes a ``report.json`` with an error in place of results."""
    record = {"config": config, "overrides": overrides, "error": message}
    _write(folder / "report.json", json.dumps(_plain(record), indent=1) + "\n")


def report_dict(report: Report) -> dict[str, object]:
    """The report as nested dictionaries."""
    outcome = asdict(report.outcome)
    evaluation = report.evaluation
    return {
        "config": report.config,
        "overrides": report.overrides,
        "method": report.method,
        "versions": versions(),
        "device": device(),
        "hashes": report.hashes,
        "data": {name: asdict(origin) for name, origin in report.origins.items()},
        "notes": report.notes,
        "accuracy": {"not_measured": evaluation} if isinstance(evaluation, str) else asdict(evaluation),
        "sample": None if report.sample is None else asdict(report.sample),
        "size": {
            "source_bytes": outcome.pop("source_bytes"),
            "target_bytes": outcome.pop("target_bytes"),
            "bits_per_weight": outcome.pop("bits_per_weight"),
            "quantized_share": report.outcome.quantized_source_bytes / report.outcome.weight_bytes,
            "quantized_source_bytes": outcome.pop("quantized_source_bytes"),
            "weight_bytes": outcome.pop("weight_bytes"),
        },
        "seconds": {**{phase.name: phase.seconds for phase in report.phases}, "total": report.total_seconds},
        "peak_mb": {phase.name: phase.peak_mb for phase in report.phases},
        "calibration": {
            "tokens": outcome.pop("tokens"),
            "moments_from_cache": outcome.pop("moments_from_cache"),
            "windows": outcome.pop("windows"),
        },
        "notices": outcome.pop("notices"),
        "unmatched_patterns": outcome.pop("unmatched"),
        "skipped": outcome.pop("skipped"),
        "layers": outcome.pop("layers"),
    }


def device() -> dict[str, object]:
    """The machine of the run."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "jax_devices": [d.device_kind for d in jax.devices()],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Versions of Python, jaxq and the libraries that it uses."""
    named = {"python": platform.python_version(), "jaxq": __version__, "onnxruntime": runtime().__version__}
    return named | {name: version(name) for name in _PACKAGES}


def _plain(value: object) -> object:
    """A copy with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
