"""Batches: inputs of a model with their padding, for calibration and evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.files.hashing import hash_arrays


@dataclass(frozen=True, eq=False)
class Batch:
    """One input of the model.

    Attributes:
        feeds: Array of each input name.
        keep: 1 for real tokens and 0 for padding, [batch, sequence]; None where everything is real.
    """

    feeds: Mapping[str, np.ndarray]
    keep: np.ndarray | None = None


def check_feeds(model: ir.Model, batches: Sequence[Batch]) -> None:
    """Refuses batches that do not fit the model's inputs.

    Raises:
        JaxqError: there are none, one lacks an input, or an array has another type or shape.
    """
    if not batches:
        raise JaxqError("the calibration data has no samples: give at least one")
    names = [str(v.name) for v in model.graph.inputs]
    for i, batch in enumerate(batches):
        if missing := [name for name in names if name not in batch.feeds]:
            raise JaxqError(f"batch {i} of the calibration data lacks {missing}: the model's inputs are {names}")
        for value in model.graph.inputs:
            _check_feed(value, np.asarray(batch.feeds[str(value.name)]))


def _check_feed(value: ir.Value, array: np.ndarray) -> None:
    dims = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
    fits = dims is None or (
        len(dims) == array.ndim and all(d is None or d == n for d, n in zip(dims, array.shape, strict=True))
    )
    if not fits or (value.dtype is not None and value.dtype != ir.DataType.from_numpy(array.dtype)):
        raise JaxqError(
            f"the calibration data for input {value.name!r} is {array.dtype} of shape {list(array.shape)}: "
            f"the model needs {value.dtype} of shape {value.shape}"
        )


def hash_batches(batches: Sequence[Batch]) -> str:
    """SHA-256 over data, padding masks included; "" for none."""
    if not batches:
        return ""
    return hash_arrays({**batch.feeds, **({} if batch.keep is None else {"/keep": batch.keep})} for batch in batches)
