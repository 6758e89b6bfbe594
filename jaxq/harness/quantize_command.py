"""``jaxq quantize``: the same run as of ``jaxq run``, from fewer words."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxq.errors import JaxqError
from jaxq.harness.command import execute
from jaxq.harness.config_reference import group_choices
from jaxq.harness.hydra_door import understood
from jaxq.harness.overrides import data_overrides, model_overrides, output_overrides, plain_settings


def quantize(
    model: str, settings: Sequence[str] = (), output: str | None = None, data: str | None = None, preset: str = "deploy"
) -> None:
    """Quantizes a model; exits with code 2 and one sentence where the run fails.

    Args:
        model: An ONNX file; a folder of onnxruntime-genai, optimum or Hugging Face; or a repository of Hugging Face.
        settings: Overrides of the configuration, which count more than all else.
        output: The run's folder; None for one below outputs/.
        data: An .npz file, a text file or a folder of such, or a dataset.
        preset: Name of a file in ``conf/preset``.

    Raises:
        JaxqError: an argument is none of these.
    """
    execute_with(quantize_overrides(model, settings, output, data, preset))


def quantize_overrides(
    model: str, settings: Sequence[str], output: str | None, data: str | None, preset: str
) -> list[str]:
    """The overrides of a run; see `quantize`."""
    _check_settings(model, settings, output)
    if preset not in (choices := group_choices("preset")):
        raise JaxqError(f"there is no preset {preset!r}: choose one of {', '.join(choices)}")
    return [
        *model_overrides(model),
        *([] if any(setting.startswith("preset=") for setting in settings) else [f"preset={preset}"]),
        *data_overrides(data, settings),
        *output_overrides(output, model),
        *understood(plain_settings(settings)),
    ]


def execute_with(overrides: Sequence[str]) -> None:
    """Runs Hydra's application with overrides in place of the process's arguments."""
    sys.argv = [sys.argv[0], *overrides]
    execute()


def _check_settings(model: str, settings: Sequence[str], output: str | None) -> None:
    """Raises an error where the model is missing, or where a second path stands among the overrides."""
    if "=" in model and not Path(model).exists() and not model.endswith(".onnx"):
        command = shlex.join(["jaxq", "quantize", "MODEL", model, *settings])
        raise JaxqError(f"the model is missing: write {command}")
    for setting in settings:
        if (key := setting.partition("=")[0].lstrip("+")) in ("model", "model.path", "model.id"):
            raise JaxqError(f"the model is given twice, as {model!r} and as {setting}: leave out {key}")
        if "=" in setting or setting.startswith("~"):
            continue
        others = [other for other in settings if other != setting]
        if output is None and setting.endswith((".onnx", "/")):
            folder = setting.removesuffix(".onnx").rstrip("/")
            command = shlex.join(["jaxq", "quantize", model, *others, "-o", folder])
            raise JaxqError(f"{setting!r} is not written as key=value: the output folder is -o, as in {command}")
        if Path(setting).exists():
            command = shlex.join(["jaxq", "quantize", model, *others, "--data", setting])
            raise JaxqError(f"{setting!r} is not written as key=value: calibration data is --data, as in {command}")
        raise JaxqError(f"{setting!r} is not written as key=value, as in method=best: jaxq run --help shows all keys")
