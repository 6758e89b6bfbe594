"""Read and write ONNX files: inputs are never changed, outputs appear complete or not at all."""

import shutil
import tempfile
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes
from google.protobuf.message import DecodeError

from jaxq.errors import JaxqError
from jaxq.files.hashing import hash_files
from jaxq.files.load import load_lazily
from jaxq.files.save import save_lazily
from jaxq.graph.constants import all_initializers
from jaxq.graph.tensors import in_memory

PROTOBUF_LIMIT = 1900 << 20
"""Most bytes of weights in a file without external data: protobuf stops at 2 GiB."""


def load_model(path: Path) -> ir.Model:
    """The model of an ONNX file; external data stays on disk, memory-mapped.

    Raises:
        JaxqError: the file is missing, cannot be read, or is not an ONNX model.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise JaxqError(f"model file {str(path)!r} {problem}: give the path of an .onnx file")
    try:
        model = load_lazily(path)
    except JaxqError:
        raise
    except PermissionError as error:
        raise JaxqError(f"model file {str(path)!r} cannot be read: permission denied") from error
    except (DecodeError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise JaxqError(
            f"model file {str(path)!r} is not an ONNX model that can be read: give an .onnx file"
        ) from error
    if "ai.onnx" in model.opset_imports:  # another name of the standard operators
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    if not model.graph.num_nodes():
        raise JaxqError(f"model file {str(path)!r} is not an ONNX model with nodes")
    for tensor in _external(model):
        file = Path(tensor.location)
        if not file.is_file():
            raise JaxqError(f"model file {str(path)!r} stores weights in {str(file)!r}, which does not exist")
        if (tensor.offset or 0) + (tensor.length or 0) > file.stat().st_size:
            raise JaxqError(f"model file {str(path)!r} stores weights in {str(file)!r}, which is cut off")
    return model


def _external(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = (value.const_value for value in all_initializers(model))
    return [t for t in tensors if isinstance(t, ir.ExternalTensor)]


def data_files(path: Path, model: ir.Model) -> list[Path]:
    """Files beside the model with its external data, sorted.

    Args:
        path: The model's file.
        model: From `load_model`.
    """
    return sorted({Path(t.location) for t in _external(model)} - {path})


def hash_model(path: Path, model: ir.Model) -> str:
    """SHA-256 over a model's file and its external data."""
    return hash_files([path, *data_files(path, model)])


def file_bytes(path: Path) -> int:
    """Size of a model's file and of the external data that jaxq writes beside it."""
    beside = data_path(path)
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def data_path(path: Path) -> Path:
    """The file with the external data of a model that jaxq writes."""
    return path.with_name(f"{path.name}.data")


def _check_written(written: Path, path: Path) -> None:
    """Raises an error where the file cannot be loaded: a full disk can cut off external data without one."""
    try:
        load_model(written)
    except JaxqError as error:
        raise JaxqError(f"cannot write {str(path)!r}: the file was cut off; is the disk full?") from error


def save_model(model: ir.Model, path: Path, external_above: int) -> None:
    """Writes a model, with its weights in ``<name>.data`` beside it if they take more than ``external_above`` bytes.

    Raises:
        JaxqError: the folder cannot be written, or the disk is full.
    """
    passes.NameFixPass()(model)
    tensors = [value.const_value for value in all_initializers(model)]
    external = sum(t.nbytes for t in tensors if t is not None) > external_above
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".jaxq-", dir=path.parent))
    except OSError as error:
        raise JaxqError(f"cannot write to {str(path.parent)!r}: {error.strerror}") from error
    try:
        if external:
            ir.save(model, folder / path.name, external_data=data_path(path).name)
        else:
            for value in all_initializers(model):
                if isinstance(value.const_value, ir.ExternalTensor):  # its numbers move into this file
                    value.const_value = in_memory(value)
            save_lazily(model, folder / path.name)
        _check_written(folder / path.name, path)
        for file in sorted(folder.iterdir(), reverse=True):  # data first: a model file that exists is complete
            file.replace(path.with_name(file.name))
        if not external:
            data_path(path).unlink(missing_ok=True)  # of an older file that this one replaces
    except OSError as error:
        raise JaxqError(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
