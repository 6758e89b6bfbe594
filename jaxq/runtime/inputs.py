"""Make the inputs of a model from token ids, and from arrays that have the inputs' names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.runtime.batches import Batch
from jaxq.runtime.caches import cache_dims, cache_length, check_caches, empty_cache, is_cache, window_size

TOKENS = "input_ids"
MASK = "attention_mask"


@dataclass(frozen=True)
class ModelInput:
    """Name, numpy type and shape of an input of a model.

    Attributes:
        name, dtype: As the model has them.
        dims: Its shape: numbers, names of axes, None for axes without either; None where the file says nothing. The
            last axis of a cache is a number where the attention node that reads it shows it.
        window: Length of a cache that is a buffer of one size, however many tokens it holds; 0 for one that grows.
    """

    name: str
    dtype: np.dtype
    dims: tuple[int | str | None, ...] | None
    window: int = 0

    @property
    def rank(self) -> int | None:
        """Number of axes."""
        return None if self.dims is None else len(self.dims)


@dataclass(frozen=True)
class InputSpec:
    """The inputs that a model needs.

    Attributes:
        inputs: Its inputs, initializers left out.
        vocabulary: Number of token ids, where a Gather over ``input_ids`` shows it; else None.
        real_tokens_first: Padding has to follow the real tokens: GroupQueryAttention gets only their number.
    """

    inputs: tuple[ModelInput, ...]
    vocabulary: int | None
    real_tokens_first: bool = False

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
        inputs.append(ModelInput(str(value.name), dtype, cache_dims(value), window_size(value)))
        for node, index in value.uses():
            table = node.inputs[0]
            if value.name == TOKENS and node.op_type == "Gather" and index == 1 and table and table.shape:
                rows = table.shape[0]
                vocabulary = rows if isinstance(rows, int) else vocabulary
    grouped = any(node.op_type == "GroupQueryAttention" for node in model.graph.all_nodes())
    return InputSpec(tuple(inputs), vocabulary, grouped)


def to_batches(arrays: Mapping[str, np.ndarray], spec: InputSpec, batch_size: int) -> list[Batch]:
    """Inputs of a model, ``batch_size`` samples at a time, checked and completed.

    With ``input_ids`` [samples, sequence] the data may leave out: ``attention_mask`` (ones), ``position_ids`` (the
    count of real tokens before each), ``cache_position``, ``token_type_ids`` (zeros), keys and values of earlier tokens
    (of length 0), states of recurrent layers (zeros) and ``use_cache_branch`` (whether there are earlier tokens). A
    mask is [samples, sequence], or [samples, past + sequence] beside a past; the shorter one says that all of the past
    is real. Where the model needs real tokens first, padding on the left or within a row is moved behind them.

    Integers are cast to the model's type where no value changes; floats are rounded to it.

    Raises:
        JaxqError: an input is missing or of the wrong kind, a token id is out of range, a value is not finite, or
            caches do not fit the tokens or each other.
    """
    if batch_size < 1:
        raise JaxqError(f"batch_size is {batch_size}: give a positive number of samples")
    given = _check_all(arrays, spec)
    count = len(next(iter(given.values()))) if given else 0
    return [
        _complete({name: a[start : start + batch_size] for name, a in given.items()}, spec)
        for start in range(0, max(count, 1), batch_size)
    ]


def to_batch(arrays: Mapping[str, np.ndarray], spec: InputSpec) -> Batch:
    """One input of a model, checked and completed as `to_batches` does.

    Raises:
        JaxqError: an input is missing, unknown or of the wrong kind, or a value is out of range.
    """
    batch = _complete(_check_all(arrays, spec), spec)
    if unknown := sorted(set(arrays) - {*spec.names, MASK}):
        raise JaxqError(f"the data has {', '.join(unknown)}, and the model's inputs are {', '.join(spec.names)}")
    return batch if TOKENS in arrays else replace(batch, keep=None)


def decoding_feeds(ids: np.ndarray, past: int, spec: InputSpec) -> dict[str, np.ndarray]:
    """The inputs of a model but for its caches, for new tokens after a past that the caches hold.

    Args:
        ids: New token ids [samples, tokens].
        past: Number of earlier tokens.
        spec: The model's inputs.

    Raises:
        JaxqError: an input has no default.
    """
    mask = np.ones((len(ids), past + ids.shape[1]), np.int64)
    feeds = {i.name: ids.astype(i.dtype) for i in spec.inputs if i.name == TOKENS}
    for model_input in spec.inputs:
        if model_input.name != TOKENS and not _is_cache(model_input):
            default = _default(model_input, (len(ids), ids.shape[1]), past, mask)
            if default is None:
                raise JaxqError(f"the model's input {model_input.name!r} has no default value beside a past")
            feeds[model_input.name] = default
    return feeds


def _check_all(arrays: Mapping[str, np.ndarray], spec: InputSpec) -> dict[str, np.ndarray]:
    """The data, each array in the model's type; a mask that is no input of the model stays as it is."""
    inputs = {i.name: i for i in spec.inputs}
    arrays = dict(arrays)
    ids, mask = arrays.get(TOKENS), arrays.get(MASK)
    if mask is not None and mask.ndim <= 2 and not (mask.dtype.kind in "fiub" and np.isin(mask, (0, 1)).all()):
        raise JaxqError("attention_mask has values other than 0 and 1: it needs 1 for real tokens and 0 for padding")
    if ids is not None and mask is not None and ids.ndim == 2 and mask.ndim <= 2:
        past = _past_length(arrays, spec)
        if mask.shape not in (ids.shape, (len(ids), past + ids.shape[1])):
            beside = f" beside a past of {past} tokens" if past else ""
            raise JaxqError(
                f"attention_mask has shape {list(mask.shape)} and input_ids {list(ids.shape)}{beside}: they must agree"
            )
        if past and mask.shape == ids.shape:  # of the new tokens alone: the model's covers the past too
            arrays[MASK] = np.concatenate([np.ones((len(ids), past), mask.dtype), mask], axis=1)
    return {name: _checked(inputs[name], a, spec) if name in inputs else a for name, a in arrays.items()}


def _complete(given: Mapping[str, np.ndarray], spec: InputSpec) -> Batch:
    """The feeds of one batch with defaults for missing inputs, and a mask of its real tokens."""
    full, keep = dict(given), given.get(MASK)
    ids = full.get(TOKENS)
    if ids is not None and ids.ndim == 2:
        past = _past_length(full, spec)
        _check_past(full, spec, past)
        keep = _real_tokens(full.get(MASK), ids.shape)
        if spec.real_tokens_first and not keep.all():
            full, keep = _move_padding(full, keep, past)
            if any(i.window for i in spec.inputs):  # such a node takes no padding; real tokens never see what follows
                full[MASK] = np.ones_like(keep)
        mask = full.get(MASK, keep)
        defaults = {i.name: _default(i, ids.shape, past, mask) for i in spec.inputs if i.name not in full}
        full |= {name: array for name, array in defaults.items() if array is not None}
    if missing := [name for name in spec.names if name not in full]:
        raise JaxqError(
            f"the model's inputs are {', '.join(spec.names)}, and the data has none for {', '.join(missing)}: "
            "give an npz file with arrays of these names"
        )
    return Batch({name: full[name] for name in spec.names}, keep)


def _is_cache(model_input: ModelInput) -> bool:
    return model_input.dtype.kind != "b" and is_cache(model_input.name)


def _past_length(given: Mapping[str, np.ndarray], spec: InputSpec) -> int:
    """Number of earlier tokens in the caches of the data."""
    caches = [i for i in spec.inputs if _is_cache(i) and i.name in given and not i.window]
    return max((cache_length(given[i.name], i.dims) for i in caches), default=0)


def _check_past(full: Mapping[str, np.ndarray], spec: InputSpec, past: int) -> None:
    """Refuses caches that do not fit the model, the token ids, or each other."""
    samples, length = full[TOKENS].shape
    caches = [i for i in spec.inputs if _is_cache(i)]
    given = {i.name: full[i.name] for i in caches if i.name in full}
    check_caches(given, {i.name: i.dims for i in caches if not i.window}, samples)
    if past and (missing := [i.name for i in caches if i.name not in given]):
        raise JaxqError(
            f"the data has a past of {past} tokens, and none for {', '.join(missing)}: give all caches or none"
        )
    if past and spec.real_tokens_first and samples > 1 and length > 1:
        raise JaxqError(
            f"GroupQueryAttention takes {length} tokens beside a past for one sample at a time, and the batch has "
            f"{samples}: give calib.batch_size=1 and eval.batch_size=1"
        )


def _real_tokens(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """1 for real tokens and 0 for padding, [samples, sequence]: the last columns of a mask that covers a past too."""
    if mask is None or mask.ndim > 2:  # a mask of more axes says which tokens each token may attend to
        return np.ones(shape, np.int64)
    return mask[:, mask.shape[1] - shape[1] :]


def _move_padding(
    full: Mapping[str, np.ndarray], keep: np.ndarray, past: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The feeds with each row's real tokens moved to its start, and the mask of real tokens moved alike."""
    if past:
        raise JaxqError("GroupQueryAttention takes no padding beside a past: leave one of them out of the data")
    if not keep.any(axis=1).all():
        row = int(np.argmin(keep.any(axis=1)))
        raise JaxqError(f"row {row} of a batch is padding alone: leave that sample out")
    order = np.argsort(keep == 0, axis=1, kind="stable")
    rows = np.arange(len(order))[:, None]
    moved = {name: a[rows, order] if a.shape[:2] == keep.shape else a for name, a in full.items()}
    return moved, keep[rows, order]


def _default(model_input: ModelInput, shape: tuple[int, ...], past: int, mask: np.ndarray) -> np.ndarray | None:
    """The default of an input that the data lacks, for token ids [samples, sequence] after a past; None: no default."""
    name, rank = model_input.name, 2 if model_input.rank is None else model_input.rank
    samples, length = shape
    default = None
    if name == MASK and rank == 2:
        default = np.ones((samples, past + length))
    elif name == "position_ids" and (rank == 2 or (rank == 3 and model_input.dims and model_input.dims[0] == 3)):
        covered = mask.shape[1] - length if mask.ndim == 2 else past
        counts = np.cumsum(mask, axis=1)[:, covered:] if mask.ndim == 2 else np.arange(1, length + 1) + past
        default = np.broadcast_to(np.maximum(counts - 1 + past - covered, 0), (3,) * (rank - 2) + shape)
    elif name == "cache_position":
        default = np.arange(past, past + length)
    elif name == "token_type_ids" and rank == 2:
        default = np.zeros(shape)
    elif name == "use_cache_branch":
        default = np.full((1,) * (model_input.rank or 0), past > 0)
    elif _is_cache(model_input):
        default = empty_cache(name, model_input.dtype, model_input.dims, samples, model_input.window)
    return None if default is None else np.asarray(default).astype(model_input.dtype)


def _checked(model_input: ModelInput, array: np.ndarray, spec: InputSpec) -> np.ndarray:
    name = model_input.name
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise JaxqError(f"the data for input {name!r} has values that are NaN or infinite: fix the file")
    numbers = array.dtype.kind in "fiub" or array.dtype == model_input.dtype  # bfloat16 is of no kind of numpy's
    if not numbers or (model_input.dtype.kind in "iu" and array.dtype.kind == "f"):
        raise JaxqError(f"the data for input {name!r} has type {array.dtype}: the model needs {model_input.dtype}")
    if model_input.rank is not None and array.ndim != model_input.rank:
        raise JaxqError(
            f"the data for input {name!r} has shape {list(array.shape)}: it needs {model_input.rank} dimensions"
        )
    if array.ndim and not len(array):
        raise JaxqError(f"the data for input {name!r} is empty: give at least one sample")
    if name == TOKENS and not array.size:
        raise JaxqError(f"the data for input {name!r} has shape {list(array.shape)}: give at least one token a sample")
    if name == TOKENS and spec.vocabulary is not None:
        bad = (array < 0) | (array >= spec.vocabulary)
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            raise JaxqError(
                f"token id {int(array[bad][0])} at {where} is out of range: the model knows 0 to "
                f"{spec.vocabulary - 1}; take the model's own tokenizer"
            )
    cast = array.astype(model_input.dtype)
    if array.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise JaxqError(f"the data for input {name!r} has values beyond the model's type {model_input.dtype}")
    return cast
