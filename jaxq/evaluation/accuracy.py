"""What quantization cost in accuracy: the quantized file against the float one, both run by onnxruntime."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jaxtyping import Array, Float, Int

from jaxq.evaluation.outputs import OutputComparison, compare_outputs
from jaxq.files.model_file import PROTOBUF_LIMIT, data_files, load_model, save_model
from jaxq.forms.form import Form
from jaxq.forms.registry import FORMS
from jaxq.progress import Progress, silent
from jaxq.readback.float_model import float_model
from jaxq.runtime.batches import Batch
from jaxq.runtime.bfloat16 import has_bfloat16, widen_bfloat16
from jaxq.runtime.inputs import read_input_spec
from jaxq.runtime.session import run, session, to_jax

if TYPE_CHECKING:
    from jaxq.runtime.session import Session


RUNTIMES = {"level 1": 1, "default": None}
"""Runtime settings that are judged: products in float32, and onnxruntime's default (activations in 8 bits)."""


@dataclass(frozen=True)
class Accuracy:
    """Figures of one file under one runtime setting.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood of the next token.
        kl: Mean Kullback-Leibler divergence from the float model's next-token distribution, in nats.
        top1: Share of positions where both models' most likely token is the same.
    """

    perplexity: float
    kl: float
    top1: float


@dataclass(frozen=True)
class Evaluation:
    """Figures on held-out text.

    Attributes:
        tokens: Number of predicted tokens.
        reference: The float model's perplexity.
        runtimes: Figures of the quantized model by runtime setting, see `RUNTIMES`.
    """

    tokens: int
    reference: float
    runtimes: dict[str, Accuracy]


@jax.jit
def compare(
    reference: Float[Array, "batch sequence vocabulary"],
    logits: Float[Array, "batch sequence vocabulary"],
    ids: Int[Array, "batch sequence"],
    keep: Float[Array, "batch sequence"],
) -> Float[Array, "4"]:
    """Sums over next-token positions: reference NLL, NLL, KL and top-1 agreement.

    Position ``t`` predicts ``ids[t + 1]``, and counts where both are real tokens.
    """
    p = jax.nn.log_softmax(reference[:, :-1].astype(jnp.float32))
    q = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    target = ids[:, 1:, None]
    counts = keep[:, 1:] * keep[:, :-1]
    kl = jnp.sum(jnp.exp(p) * (p - q), axis=-1)
    agree = (jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)).astype(jnp.float32)
    nll_p, nll_q = (-jnp.take_along_axis(x, target, axis=-1)[..., 0] for x in (p, q))
    return jnp.stack([jnp.sum(v * counts) for v in (nll_p, nll_q, kl, agree)])


def evaluate(
    reference: Path, quantized: Path, batches: Sequence[Batch], progress: Progress = silent, form: Form = FORMS["dq"]
) -> Evaluation | OutputComparison | str:
    """What a model that was quantized lost on held-out data, or a sentence that says why that is not known.

    Language models are judged by perplexity, KL and top-1 agreement, all others by their outputs; see
    `is_language_model` and `jaxq.evaluation.outputs`.

    Args:
        reference: The float model.
        quantized: Its quantized copy.
        batches: Held-out data.
        progress: Told of each batch.
        form: The quantized file's form. One that onnxruntime cannot run on a CPU is judged at level 1 alone, on the
            float model with the weights that the file's bytes stand for.
    """
    if not batches:
        return "no held-out data was given"
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        runnable = _runnable(reference, Path(folder) / "float.onnx")
        base = session(runnable, mapped=_size(runnable) > _LARGE)
        others = _sessions(quantized, form, Path(folder))
    output = logits_name(base)
    vocabulary = read_input_spec(load_model(reference)).vocabulary
    advance = progress("evaluate", len(batches))
    if output is None or not is_language_model(base, output, batches[0], vocabulary):
        return compare_outputs(base, others, batches, advance)
    sums = {name: np.zeros(4) for name in others}
    tokens = 0
    for batch in batches:
        ids = jnp.asarray(batch.feeds["input_ids"], jnp.int32)
        keep = jnp.ones(ids.shape, jnp.float32) if batch.keep is None else jnp.asarray(batch.keep, jnp.float32)
        tokens += int(jnp.sum(keep[:, 1:] * keep[:, :-1]))
        expected = to_jax(run(base, [output], batch.feeds)[output])
        if int(ids.max()) >= expected.shape[-1]:
            return f"output {output!r} of shape {list(expected.shape)} has no logit of token {int(ids.max())}"
        for name, other in others.items():
            got = to_jax(run(other, [output], batch.feeds)[output])
            sums[name] += np.asarray(compare(expected, got, ids, keep), np.float64)
        advance()
    if not tokens:
        return "the held-out text has no two real tokens in a row"
    means = {name: total / tokens for name, total in sums.items()}
    runtimes = {n: Accuracy(float(np.exp(m[1])), float(m[2]), float(m[3])) for n, m in means.items()}
    return Evaluation(tokens, float(np.exp(next(iter(means.values()))[0])), runtimes)


_LARGE = 2 << 30  # bytes of a float model that is not copied into memory
_CAUSAL = 1e-5
_LOGITS = "logits"


def is_language_model(model: "Session", output: str, batch: Batch, vocabulary: int | None = None) -> bool:
    """Whether an output holds logits of the next token: one for every id, at every token, that no later token changes.

    The last is what tells a language model from a BERT with a head: it is tried out, by another last token in the first
    sample. A causal model's earlier logits stay the same to the bit; those that move by more than 1e-5 of the greatest
    saw the token.

    Args:
        model: The float model.
        output: Its output that may hold logits.
        batch: Any input.
        vocabulary: Number of ids that the model knows, if that is known: hidden states that are narrower are no logits.
    """
    ids = batch.feeds.get("input_ids")
    if ids is None or ids.ndim != 2 or ids.shape[1] < 2:
        return False
    before = np.asarray(run(model, [output], batch.feeds)[output].numpy(), np.float32)
    least = int(ids.max()) + 1 if output == _LOGITS else max(int(ids.max()) + 1, vocabulary or 0)
    if before.shape[:2] != ids.shape or before.shape[-1] < least:
        return False
    keep = np.ones(ids.shape) if batch.keep is None else np.asarray(batch.keep)
    real = np.flatnonzero(keep[0])
    if len(real) < 2:
        return False
    last = int(real[-1])
    others = ids[ids != ids[0, last]]  # an id that the model surely knows
    changed = ids.copy()
    changed[0, last] = others[0] if others.size else (int(ids[0, last]) + 1) % before.shape[-1]
    after = np.asarray(run(model, [output], {**batch.feeds, "input_ids": changed})[output].numpy(), np.float32)
    earlier = real[:-1]
    moved = np.abs(after[0, earlier] - before[0, earlier])
    return not bool(np.nanmax(moved, initial=0.0) > _CAUSAL * np.nanmax(np.abs(before[0, earlier]), initial=0.0))


def _runnable(path: Path, copy: Path) -> Path:
    """The file itself, or, of a model with bfloat16, a copy in float32 at the other path."""
    model = load_model(path)
    if not has_bfloat16(model):
        return path
    widen_bfloat16(model)
    save_model(model, copy, PROTOBUF_LIMIT)
    return copy


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *data_files(path, load_model(path))))


def _sessions(quantized: Path, form: Form, folder: Path) -> dict[str, "Session"]:
    """A session for each runtime setting; files that stand in for the quantized one lie in the folder."""
    quantized = _runnable(quantized, folder / "widened.onnx")
    if form.runs and not form.stores_accuracy_level:
        return {name: session(quantized, level) for name, level in RUNTIMES.items()}
    model = load_model(quantized)
    if not form.runs:
        float_model(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "MatMulNBits":  # the level that is stored in the node counts, not the session's
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    save_model(model, folder / "exact.onnx", PROTOBUF_LIMIT)
    exact = {"level 1": session(folder / "exact.onnx", 1)}
    return exact | {"default": session(quantized)} if form.runs else exact


def logits_name(model: "Session") -> str | None:
    """The output named "logits", or the first float one with three dimensions."""
    outputs = model.get_outputs()
    named = [o.name for o in outputs if o.name == _LOGITS]
    return next(iter(named + [o.name for o in outputs if len(o.shape or ()) == 3 and "float" in o.type]), None)
