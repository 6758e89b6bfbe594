"""The ONNX files of a folder: of onnxruntime-genai's builder, of optimum, of a Hugging Face repository, or of a run."""

import json
from collections.abc import Iterator
from pathlib import Path

from jaxq.errors import JaxqError
from jaxq.files.companions import GENAI

_SUBFOLDER = "onnx"
"""Folder of exports within a repository of Hugging Face."""


def find_model(path: Path) -> Path:
    """The one ONNX file that a path stands for.

    Of a folder, it is the decoder that ``genai_config.json`` names; else the only ONNX file of the folder, or of its
    subfolder "onnx"; else ``model.onnx`` among several.

    Args:
        path: An ONNX file, which is returned as it is, or a folder.

    Raises:
        JaxqError: there is no such path, the folder has no ONNX file, or several and none of these.
    """
    files = list_models(path)
    if len(files) == 1 or _configured(path):
        return files[0]
    named = [file for file in files if file.name == "model.onnx"]
    if len(named) == 1:
        return named[0]
    names = ", ".join(str(file.relative_to(path)) for file in files)
    raise JaxqError(f"folder {str(path)!r} has several models: give one of {names}, as in {str(files[0])!r}")


def list_models(path: Path) -> list[Path]:
    """The ONNX files that a path stands for.

    Of a folder with ``genai_config.json``, these are the models that it names, the decoder first; else the ONNX files
    of the folder, or of its subfolder "onnx" where the folder has none, sorted by name.

    Args:
        path: An ONNX file, which is returned alone, or a folder.

    Raises:
        JaxqError: there is no such path, or the folder has no ONNX file.
    """
    if not path.is_dir():
        if not path.exists():
            raise JaxqError(f"model {str(path)!r} does not exist: give the path of an .onnx file, or a folder with one")
        return [path]
    files = _configured(path) or _onnx_files(path) or _onnx_files(path / _SUBFOLDER)
    if files:
        return files
    if is_huggingface(path):
        raise JaxqError(
            f"folder {str(path)!r} is a Hugging Face model without an ONNX file: jaxq quantize exports it, and so does "
            "model=hf model.id=<folder>"
        )
    raise JaxqError(
        f"folder {str(path)!r} has no model: give an .onnx file, or a folder with one, or with config.json and weights"
    )


def is_huggingface(folder: Path) -> bool:
    """True for a folder with a Hugging Face ``config.json`` beside weights of PyTorch or safetensors."""
    if not (folder / "config.json").is_file():
        return False
    return any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin"))


def _onnx_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.onnx") if p.is_file() and not p.name.startswith("."))


def _configured(folder: Path) -> list[Path]:
    """The files that ``genai_config.json`` names; none without it.

    Raises:
        JaxqError: it cannot be read, or names a file that is not there.
    """
    path = folder / GENAI
    if not path.is_file():
        return []
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model = dict(config["model"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise JaxqError(f"{str(path)!r} cannot be read as a configuration of onnxruntime-genai: {error}") from error
    names = dict.fromkeys([*_filenames(model.pop("decoder", None)), *_filenames(model)])
    files = [folder / name for name in names if name.endswith(".onnx")]
    if missing := [file for file in files if not file.is_file()]:
        raise JaxqError(f"{str(path)!r} names {missing[0].name!r}, which does not exist: the folder is not complete")
    return files


def _filenames(value: object) -> Iterator[str]:
    """The values of all keys "filename" in nested dictionaries and lists."""
    if isinstance(value, dict):
        if isinstance(name := value.get("filename"), str):
            yield name
        for inner in value.values():
            yield from _filenames(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _filenames(inner)
