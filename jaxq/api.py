"""Whole runs from Python: `quantize` and `evaluate`, with the configuration of the command line behind them."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from jaxq.errors import JaxqError
from jaxq.harness.evaluate import ModelsEvaluation, evaluate_models
from jaxq.harness.library_run import Quantization, quantize_to

PathText = str | PathLike[str]
Data = PathText | np.ndarray | Sequence[str]
"""Path of a file or folder, name of a dataset, token ids [samples, length], or texts."""

_SEPARATOR = "\n\n"  # between texts, as between the rows of a dataset


def quantize(
    model: PathText,
    output: PathText,
    method: str | None = None,
    data: Data | None = None,
    held_out: Data | None = None,
    preset: str = "deploy",
    options: Sequence[str] = (),
) -> Quantization:
    """Writes a copy of a model with 4-bit weights to a folder, as ``jaxq quantize`` does, and prints nothing.

    Args:
        model: An ONNX file; a folder of onnxruntime-genai, optimum or Hugging Face; or a repository of Hugging Face.
        output: The folder for model.onnx, report.json and layers.csv.
        method: The quantization method, such as "best" or "rtn_dq"; None leaves it to the preset.
        data: Calibration data: an .npz file, a text file or a folder of such, or a dataset; an integer array of token
            ids [samples, length]; or a list of texts. Of texts a fifth is held out, if ``held_out`` is None.
        held_out: Data to measure the accuracy on, of the same kinds.
        preset: "deploy", "accurate" or "modelopt".
        options: Any other options as on the command line: ``["block_size=32", "calib.samples=64"]``.

    Raises:
        JaxqError: the input is bad.

    Example:
        >>> quantize("missing.onnx", "out")
        Traceback (most recent call last):
        jaxq.errors.JaxqError: model 'missing.onnx' does not exist:
        give an .onnx file, a folder with a model, or a Hugging Face repository
    """
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        calibration = None if data is None else _as_path(data, "calib", Path(folder))
        evaluation = None if held_out is None else _as_path(held_out, "eval", Path(folder))
        settings = [*([] if method is None else [f"method={method}"]), *_options(options)]
        return quantize_to(_path(model, "model"), _path(output, "output"), settings, (calibration, evaluation), preset)


def evaluate(
    models: PathText | Sequence[PathText],
    data: Data | None = None,
    against: PathText | None = None,
    prompt: str | None = None,
    options: Sequence[str] = (),
) -> ModelsEvaluation:
    """Accuracy, size, speed and a sample of text of model files of any tool, as ``jaxq evaluate`` measures them.

    Args:
        models: ONNX files, or folders with one; or a single one.
        data: Held-out data, as for `quantize`. None measures size and speed alone.
        against: The float model, for KL divergence and agreement, or for the distances of outputs.
        prompt: A text to continue; None takes the beginning of the data.
        options: Options ``eval.*`` as on the command line: ``["eval.samples=16"]``.

    Raises:
        JaxqError: the input is bad.

    Example:
        >>> evaluate("missing.onnx")
        Traceback (most recent call last):
        jaxq.errors.JaxqError: model 'missing.onnx' does not exist:
        give the path of an .onnx file, or a folder with one
    """
    names = [_path(m, "models") for m in ([models] if isinstance(models, str | PathLike) else models)]
    if not names:
        raise JaxqError("no model is given: give the path of an .onnx file, or a folder with one")
    float_model = None if against is None else _path(against, "against")
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        path = None if data is None else _as_path(data, "eval", Path(folder))
        result = evaluate_models(names, path, float_model, prompt, _options(options))
    return result if data is None or isinstance(data, str | PathLike) else replace(result, data=_title(data))


def _options(options: Sequence[str]) -> list[str]:
    """The options as a list; a single string would be taken apart into letters."""
    if isinstance(options, str):
        raise JaxqError(f"options is the string {options!r}: give a list, as in options=[{options!r}]")
    return list(options)


def _path(value: object, name: str) -> str:
    """A path as text.

    Raises:
        JaxqError: it is no path.
    """
    if not isinstance(value, str | PathLike):
        raise JaxqError(f"{name} is of type {type(value).__name__}: give a path, as text or as pathlib.Path")
    return fspath(value)


def _as_path(data: Data, key: str, folder: Path) -> str:
    """The path or name of data; arrays and texts are written to the folder first.

    Raises:
        JaxqError: the array has no token ids, or a list holds something else than texts.
    """
    if isinstance(data, str | PathLike):
        return fspath(data)
    if not isinstance(data, np.ndarray) and len(data) and all(isinstance(text, str) for text in data):
        path = folder / f"{key}.txt"
        path.write_text(_SEPARATOR.join(data), encoding="utf-8")
        return str(path)
    try:
        array = np.asarray(data)
    except ValueError as error:  # rows of different lengths
        raise JaxqError(f"{key} data is no array of token ids [samples, length]: {error}") from error
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
        raise JaxqError(
            f"{key} data is an array of {array.dtype} of shape {list(array.shape)}: give token ids [samples, length], "
            "texts, or a path"
        )
    path = folder / f"{key}.npz"
    if key == "calib":
        np.savez(path, calib=array)
    else:
        np.savez(path, eval=array)
    return str(path)


def _title(data: Data) -> str:
    """Name of data that has no path."""
    return f"{len(data)} texts" if isinstance(data[0], str) else "token ids"  # type: ignore[index]


__all__ = ["ModelsEvaluation", "Quantization", "evaluate", "quantize"]
