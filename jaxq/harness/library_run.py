"""A run from Python: the configuration of ``jaxq quantize``, and its results as values."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from jaxq.errors import JaxqError
from jaxq.evaluation.accuracy import Evaluation
from jaxq.evaluation.outputs import OutputComparison
from jaxq.harness.command import run
from jaxq.harness.compose import compose_config
from jaxq.harness.overrides import held_out_overrides
from jaxq.harness.quantize_command import quantize_overrides
from jaxq.pipeline.outcome import Outcome


@dataclass(frozen=True)
class Quantization:
    """The results of a run from Python.

    Attributes:
        folder: The folder with model.onnx, report.json and layers.csv.
        model: The quantized model's file.
        method: The method that ran: the one that "auto" chose.
        outcome: Weights, sizes, bits and times; see `jaxq.pipeline.Outcome`.
        evaluation: Accuracy on held-out data, or the reason why it was not measured.
        notes: Sentences that a reader should not miss.
    """

    folder: Path
    model: Path
    method: str
    outcome: Outcome
    evaluation: Evaluation | OutputComparison | str
    notes: tuple[str, ...]


def quantize_to(
    model: str, output: str, settings: Sequence[str], data: tuple[str | None, str | None], preset: str
) -> Quantization:
    """Quantizes a model as ``jaxq quantize`` does.

    Args:
        model, output, settings, preset: As for `jaxq.harness.quantize_command.quantize`.
        data: Calibration data and held-out data, as the command's ``data``.

    Raises:
        JaxqError: the input is bad.
    """
    calibration, held_out = data
    settings = [*held_out_overrides(held_out), *settings]
    composed = quantize_overrides(model, settings, output, calibration, preset)
    overrides = [override for override in composed if not override.startswith("hydra.run.dir=")]
    config = compose_config(overrides)
    if config.dry_run:
        raise JaxqError("dry_run has no results in Python: run jaxq quantize with dry_run=true instead")
    plain = cast(Mapping[str, object], OmegaConf.to_container(cast(DictConfig, config), resolve=True))
    folder = Path(output)
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JaxqError(f"cannot write to {output!r}: {error.strerror}") from error
    try:
        report = run(config, plain, folder, Console(quiet=True), overrides)
    except BaseException:
        if not existed:
            with suppress(OSError):  # it holds results: those of a run whose evaluation failed
                folder.rmdir()
        raise
    return Quantization(folder, folder / "model.onnx", report.method, report.outcome, report.evaluation, report.notes)
