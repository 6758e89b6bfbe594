"""Language models in onnxruntime: recognised by their logits, and run token by token with their caches."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxq.errors import JaxqError
from jaxq.files.model_file import PROTOBUF_LIMIT, data_files, load_model, save_model
from jaxq.runtime.batches import Batch
from jaxq.runtime.bfloat16 import has_bfloat16, widen_bfloat16
from jaxq.runtime.caches import is_cache
from jaxq.runtime.inputs import TOKENS, InputSpec, decoding_feeds, read_input_spec, to_batch
from jaxq.runtime.session import run, session

if TYPE_CHECKING:
    from jaxq.runtime.session import OrtValue, Session

LARGE = 2 << 30
"""Bytes; larger float models are mapped from the file and not read into memory."""

_CAUSAL_TOLERANCE = 1e-5  # of the greatest logit
_CACHE_TOLERANCE = 0.1  # of the greatest logit: activations in 8 bits move it by 3 %, and wrong caches by far more
_LOGITS = "logits"
_PROBE_TOKENS = 8
_STEP = 32  # widths of rows without a cache: onnxruntime plans memory anew for each width


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model that onnxruntime runs.

    Attributes:
        session: Of the float model.
        output: Name of the output with the logits.
        spec: The inputs.
        vocabulary: Number of token ids that the model both reads and predicts.
        caches: The output that holds each cache's next value, by the input's name; empty where no cache can be used.
    """

    session: "Session"
    output: str
    spec: InputSpec
    vocabulary: int
    caches: Mapping[str, str]


def fixed_size(spec: InputSpec, axis: int) -> int | None:
    """Number of samples (axis 0) or tokens (axis 1) that a model's ``input_ids`` insists on; None for any."""
    dims = next(i.dims for i in spec.inputs if i.name == TOKENS)
    size = None if dims is None or len(dims) <= axis else dims[axis]
    return size if isinstance(size, int) else None


def open_language_model(path: Path) -> LanguageModel | str:
    """The language model of a file, or a sentence with the reason why the model is none.

    Raises:
        JaxqError: onnxruntime cannot load or run the model, or its logits are NaN or infinite.
    """
    spec = read_input_spec(load_model(path))
    tokens = next((i for i in spec.inputs if i.name == TOKENS), None)
    if tokens is None or tokens.rank != 2 or tokens.dtype.kind not in "iu":
        return f"it has no input {TOKENS} of shape [samples, tokens]: its inputs are {', '.join(spec.names)}"
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        runnable = runnable_file(path, Path(folder) / "float.onnx")
        if runnable != path:
            spec = read_input_spec(load_model(runnable))
        float_session = session(runnable, mapped=file_size(runnable) > LARGE)
    output = logits_name(float_session)
    if output is None:
        return "it has no output of logits"
    shape = (fixed_size(spec, 0) or 1, fixed_size(spec, 1) or _PROBE_TOKENS)
    # Where the size of the vocabulary is not known, it has two ids at least.
    ids = np.random.default_rng(0).integers(0, spec.vocabulary or 2, shape)
    try:
        batch = to_batch({TOKENS: ids}, spec)
    except JaxqError as error:
        return f"token ids alone do not run it: {error}"
    if not is_language_model(float_session, output, batch, spec.vocabulary):
        return f"its output {output!r} has no logits of the next token"
    logits = run(float_session, [output], batch.feeds)[output].numpy()
    if not np.isfinite(logits.max(axis=-1)).all():
        raise JaxqError("no text can be drawn from the model: its logits are NaN or infinite")
    width = int(logits.shape[-1])
    without_caches = LanguageModel(float_session, output, spec, min(width, spec.vocabulary or width), {})
    return replace(without_caches, caches=_usable_caches(without_caches))


class TokenStream:
    """Logits of the next token of rows that grow.

    With caches only the tokens are run that are new since the last call. Without, all tokens are run again, padded on
    the right to a multiple of 32; no token sees those that follow it.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._values: dict[str, OrtValue] = {}
        self._past = 0

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits float32 [rows, vocabulary] of the token that follows the last one.

        Args:
            ids: Token ids [rows, tokens]; the first ones are those of the last call.

        Raises:
            JaxqError: onnxruntime cannot run the model.
        """
        logits = self._step(ids) if self._model.caches and self._past else self._whole(ids)
        self._past = ids.shape[1]
        return np.asarray(logits[:, : self._model.vocabulary], np.float32)

    def _whole(self, ids: np.ndarray) -> np.ndarray:
        model, count = self._model, ids.shape[1]
        width = count if model.caches else fixed_size(model.spec, 1) or -(-count // _STEP) * _STEP
        padded = np.pad(ids, ((0, 0), (0, max(0, width - count))))
        values = run(
            model.session, [model.output, *model.caches.values()], to_batch({TOKENS: padded}, model.spec).feeds
        )
        self._values = values
        return values[model.output].numpy()[:, count - 1]

    def _step(self, ids: np.ndarray) -> np.ndarray:
        model = self._model
        feeds = decoding_feeds(ids[:, self._past :], self._past, model.spec)
        caches = {name: self._values[output] for name, output in model.caches.items()}
        self._values = run(model.session, [model.output, *model.caches.values()], {**feeds, **caches})
        return self._values[model.output].numpy()[:, -1]


def _usable_caches(model: LanguageModel) -> dict[str, str]:
    """Caches by input, if running the model with them gives the logits that running whole rows gives; else none."""
    inputs = [i.name for i in model.spec.inputs if is_cache(i.name)]
    outputs = [o.name for o in model.session.get_outputs() if o.name.startswith(("present", "past"))]
    if not inputs or len(inputs) != len(outputs) or fixed_size(model.spec, 1):
        return {}
    paired = replace(model, caches=_pairs(inputs, outputs))
    ids = np.random.default_rng(1).integers(0, model.vocabulary, (fixed_size(model.spec, 0) or 2, 4))
    whole, steps = TokenStream(model), TokenStream(paired)
    try:
        for count in (2, 3, 4):
            expected, actual = whole.logits(ids[:, :count]), steps.logits(ids[:, :count])
            if not np.abs(actual - expected).max() <= _CACHE_TOLERANCE * np.abs(expected).max():
                return {}
    except JaxqError:  # another kind of cache than keys and values that grow: rows are run as a whole
        return {}
    return dict(paired.caches)


def _pairs(inputs: list[str], outputs: list[str]) -> dict[str, str]:
    """Outputs by input: of the name with "present" for "past", else in the order of the file."""
    named = {
        name: name.replace(old, "present") for name in inputs for old in ("past_key_values", "past") if old in name
    }
    if set(named.values()) == set(outputs) and len(named) == len(inputs):
        return named
    return dict(zip(inputs, outputs, strict=True))


def is_language_model(model: "Session", output: str, batch: Batch, vocabulary: int | None = None) -> bool:
    """True if an output gives logits of the next token: at each token, one logit for each id of the vocabulary.

    A language model is causal: no token changes the logits of earlier tokens. A BERT with a head is not. The test
    replaces the last token of the first sample and runs the model again. The model is causal if the earlier logits move
    by at most 1e-5 of the greatest one.

    Args:
        model: The float model.
        output: Name of the output.
        batch: Any input of the model.
        vocabulary: Number of ids of the model, if it is known; narrower outputs are hidden states, not logits.
    """
    ids = batch.feeds.get("input_ids")
    if ids is None or ids.ndim != 2 or ids.shape[1] < 2:
        return False
    before = np.asarray(run(model, [output], batch.feeds)[output].numpy(), np.float32)
    min_width = int(ids.max()) + 1 if output == _LOGITS else max(int(ids.max()) + 1, vocabulary or 0)
    if before.shape[:2] != ids.shape or before.shape[-1] < min_width:
        return False
    keep = np.ones(ids.shape) if batch.keep is None else np.asarray(batch.keep)
    real = np.flatnonzero(keep[0])
    if len(real) < 2:
        return False
    last = int(real[-1])
    other_ids = ids[ids != ids[0, last]]  # of the data: the model has these ids
    changed = ids.copy()
    changed[0, last] = other_ids[0] if other_ids.size else (int(ids[0, last]) + 1) % before.shape[-1]
    after = np.asarray(run(model, [output], {**batch.feeds, "input_ids": changed})[output].numpy(), np.float32)
    earlier = real[:-1]
    greatest = np.nanmax(np.abs(before[0, earlier]), initial=0.0)
    change = np.nanmax(np.abs(after[0, earlier] - before[0, earlier]), initial=0.0)
    return not bool(change > _CAUSAL_TOLERANCE * greatest)


def runnable_file(path: Path, copy: Path) -> Path:
    """Path of a file that onnxruntime runs: the file itself, or a float32 copy of a model with bfloat16."""
    model = load_model(path)
    if not has_bfloat16(model):
        return path
    widen_bfloat16(model)
    save_model(model, copy, PROTOBUF_LIMIT)
    return copy


def file_size(path: Path) -> int:
    """Bytes of a model and its external data."""
    return sum(file.stat().st_size for file in (path, *data_files(path, load_model(path))))


def logits_name(model: "Session") -> str | None:
    """Name of the output "logits", or else of the first float output with three dimensions; None without one."""
    outputs = model.get_outputs()
    named = [o.name for o in outputs if o.name == _LOGITS]
    return next(iter(named + [o.name for o in outputs if len(o.shape or ()) == 3 and "float" in o.type]), None)
