"""Calibration data of `jaxq.int4.quantize`: any iterable of input dictionaries, or onnxruntime's reader, as batches."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.modelopt.arrays import as_array
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import InputSpec, read_input_spec, to_batch

_FILE_ADVICE = (": give an npz file with arrays of these names", ": fix the file")
"""Ends of errors that speak of data in files; `quantize` gets its data from a Python object."""


def read_batches(reader: Any, model: ir.Model) -> list[Batch]:
    """All items of a reader, as batches for the model.

    Args:
        reader: An iterable of dictionaries from input names to arrays, or an object with ``get_next()``, which returns
            such a dictionary, or None at the end.
        model: The model that the data is for.

    Raises:
        JaxqError: the reader is neither, gives nothing, or gives data that does not fit the model.
    """
    spec = read_input_spec(model)
    batches = [_batch(f"item {i} of calibration_data_reader", item, spec) for i, item in enumerate(_items(reader))]
    if not batches:
        raise JaxqError("calibration_data_reader gives nothing: rewind a reader that was read before")
    return batches


def _items(reader: Any) -> Iterator[Any]:
    if isinstance(reader, Iterable):
        return iter(reader)
    if hasattr(reader, "get_next"):
        return iter(reader.get_next, None)
    raise JaxqError(f"calibration_data_reader is of type {type(reader).__name__}: give an iterable of dictionaries")


def _batch(name: str, feeds: Any, spec: InputSpec) -> Batch:
    """One item as a batch; ``name`` is the item's name in errors."""
    if not isinstance(feeds, Mapping):
        raise JaxqError(f"{name} is of type {type(feeds).__name__}: give dictionaries from input names to arrays")
    try:
        return to_batch({str(key): np.asarray(as_array(a, f"input {key!r}")) for key, a in feeds.items()}, spec)
    except JaxqError as error:
        text = str(error)
        for advice in _FILE_ADVICE:
            text = text.removesuffix(advice)
        raise JaxqError(f"{name}: {text}") from error
