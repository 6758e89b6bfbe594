"""Calibration and evaluation data: from token files and token ids to inputs of a model."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import onnx_ir as ir

from jaxq.batches import Batch
from jaxq.errors import JaxqError

TOKENS = "input_ids"
_MASK = "attention_mask"


@dataclass(frozen=True)
class ModelInput:
    """Name, numpy type and rank of an input of a model."""

    name: str
    dtype: np.dtype
    rank: int | None


@dataclass(frozen=True)
class InputSpec:
    """What a model wants.

    Attributes:
        inputs: Its inputs, initializers left out.
        vocabulary: Number of token ids, where a Gather over ``input_ids`` tells; else None.
    """

    inputs: tuple[ModelInput, ...]
    vocabulary: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """Input names in the model's order."""
        return tuple(i.name for i in self.inputs)


def read_input_spec(model: ir.Model) -> InputSpec:
    """The inputs of a model."""
    inputs, vocabulary = [], None
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        dtype = np.dtype((value.dtype or ir.DataType.FLOAT).numpy())
        inputs.append(ModelInput(str(value.name), dtype, None if value.shape is None else len(value.shape)))
        for node, index in value.uses():
            table = node.inputs[0]
            if value.name == TOKENS and node.op_type == "Gather" and index == 1 and table and table.const_value:
                vocabulary = int(table.const_value.shape.numpy()[0])
    return InputSpec(tuple(inputs), vocabulary)


def token_file_samples(path: Path, key: str, samples: int, spec: InputSpec) -> dict[str, np.ndarray]:
    """The first samples of an npz file.

    Args:
        path: File with an array ``key`` of token ids [samples, length] and perhaps an ``attention_mask`` of that shape;
            or with arrays named as the model's inputs, samples first.
        key: "calib" or "eval".
        samples: How many at most.
        spec: What the model wants.

    Raises:
        JaxqError: the file is missing or unreadable, has other names, or its arrays have different lengths.
    """
    arrays = _read_npz(path)
    if key in arrays:
        masked = {_MASK: arrays[_MASK][:samples]} if _MASK in arrays else {}
        return {TOKENS: arrays[key][:samples], **masked}
    feeds = {name: array[:samples] for name, array in arrays.items() if name in spec.names}
    if not feeds:
        raise JaxqError(
            f"token file {str(path)!r} holds {', '.join(sorted(arrays)) or 'nothing'}: it needs {key!r} (token ids), "
            f"or the model's inputs: {', '.join(spec.names)}"
        )
    if len({len(a) for a in feeds.values()}) > 1:
        lengths = ", ".join(f"{name} {len(a)}" for name, a in sorted(feeds.items()))
        raise JaxqError(f"token file {str(path)!r} has different numbers of samples: {lengths}")
    return feeds


def has_key(path: Path, key: str) -> bool:
    """Whether an npz file holds an array of that name."""
    return key in _read_npz(path)


def to_batches(arrays: Mapping[str, np.ndarray], spec: InputSpec, batch_size: int) -> list[Batch]:
    """Inputs of a model, ``batch_size`` samples at a time, checked and completed.

    ``attention_mask`` defaults to ones, ``position_ids`` to the count of real tokens before each, ``token_type_ids``
    to zeros; integers are cast to the model's type where that changes none, floats are rounded to it.

    Raises:
        JaxqError: an input is missing or of the wrong kind, a token id is out of range, or a value is not finite.
    """
    if batch_size < 1:
        raise JaxqError(f"batch_size is {batch_size}: give a positive number of samples")
    arrays = _complete(arrays, spec)
    feeds = {i.name: _checked(i, arrays[i.name], spec) for i in spec.inputs}
    count = len(next(iter(feeds.values())))
    keep = arrays.get(_MASK)
    return [
        Batch(
            {name: a[start : start + batch_size] for name, a in feeds.items()},
            None if keep is None else keep[start : start + batch_size],
        )
        for start in range(0, count, batch_size)
    ]


def to_batch(arrays: Mapping[str, np.ndarray], spec: InputSpec) -> Batch:
    """One input of a model, checked and completed as `to_batches` does.

    Raises:
        JaxqError: an input is missing, unknown or of the wrong kind, or a value is out of range.
    """
    full = _complete(arrays, spec)
    if unknown := sorted(set(arrays) - {*spec.names, _MASK}):
        raise JaxqError(f"the data has {', '.join(unknown)}, and the model's inputs are {', '.join(spec.names)}")
    feeds = {i.name: _checked(i, full[i.name], spec) for i in spec.inputs}
    return Batch(feeds, full.get(_MASK) if TOKENS in full else None)


def _complete(arrays: Mapping[str, np.ndarray], spec: InputSpec) -> dict[str, np.ndarray]:
    full = dict(arrays)
    ids = full.get(TOKENS)
    mask = full.get(_MASK)
    if ids is not None and mask is not None and mask.shape != ids.shape:
        raise JaxqError(f"attention_mask has shape {list(mask.shape)} and input_ids {list(ids.shape)}: they must agree")
    if ids is not None and ids.ndim == 2:
        full.setdefault(_MASK, np.ones(ids.shape, np.int64))
        full.setdefault("position_ids", np.maximum(np.cumsum(full[_MASK], axis=1) - 1, 0))
        full.setdefault("token_type_ids", np.zeros(ids.shape, np.int64))
    missing = [name for name in spec.names if name not in full]
    if missing:
        raise JaxqError(
            f"the model's inputs are {', '.join(spec.names)}, and the data has none for {', '.join(missing)}: "
            "give an npz file with arrays of these names"
        )
    return full


def _checked(wanted: ModelInput, array: np.ndarray, spec: InputSpec) -> np.ndarray:
    name = wanted.name
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise JaxqError(f"the data for input {name!r} has values that are NaN or infinite: mend the file")
    if array.dtype.kind not in "fiub" or (wanted.dtype.kind in "iu" and array.dtype.kind == "f"):
        raise JaxqError(f"the data for input {name!r} has type {array.dtype}: the model wants {wanted.dtype}")
    if wanted.rank is not None and array.ndim != wanted.rank:
        raise JaxqError(f"the data for input {name!r} has shape {list(array.shape)}: it needs {wanted.rank} dimensions")
    if array.ndim and not len(array):
        raise JaxqError(f"the data for input {name!r} is empty: give at least one sample")
    if name == TOKENS and spec.vocabulary is not None:
        bad = (array < 0) | (array >= spec.vocabulary)
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            raise JaxqError(
                f"token id {int(array[bad][0])} at {where} is out of range: the model knows 0 to {spec.vocabulary - 1}"
            )
    cast = array.astype(wanted.dtype)
    if array.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise JaxqError(f"the data for input {name!r} has values beyond the model's type {wanted.dtype}")
    return cast


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise JaxqError(f"token file {str(path)!r} does not exist: give the path of an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise JaxqError(f"token file {str(path)!r} is not an .npz file that can be read: {error}") from error
    if flat := [name for name, array in arrays.items() if not array.ndim]:
        raise JaxqError(f"token file {str(path)!r} has a single number in {flat[0]!r}: arrays with samples are needed")
    return arrays
