"""Accuracy of a quantized file against the float one on held-out data; onnxruntime runs both."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jaxtyping import Array, Float, Int

from jaxq.evaluation.outputs import OutputComparison, compare_outputs
from jaxq.files.model_file import PROTOBUF_LIMIT, load_model, save_model
from jaxq.forms.form import Form
from jaxq.forms.registry import FORMS
from jaxq.progress import Progress, silent
from jaxq.readback.float_model import float_model
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import read_input_spec
from jaxq.runtime.language_model import LARGE, file_size, is_language_model, logits_name, runnable_file
from jaxq.runtime.session import run, session, to_jax

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxq.runtime.session import Session


RUNTIMES = {"level 1": 1, "default": None}
"""onnxruntime's accuracy levels by name: products in float32, and its default (activations in 8 bits)."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a language model under one runtime setting.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood of the next token.
        kl: Mean Kullback-Leibler divergence from the float model's next-token distribution, in nats.
        top1: Share of positions where the most likely token of both models is the same.
    """

    perplexity: float
    kl: float
    top1: float


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a language model on held-out text.

    Attributes:
        tokens: Number of predicted tokens.
        float_perplexity: Perplexity of the float model.
        runtimes: Accuracy of the quantized model by runtime setting; see `RUNTIMES`.
    """

    tokens: int
    float_perplexity: float
    runtimes: dict[str, Accuracy]


@jax.jit
def compare(
    reference: Float[Array, "batch sequence vocabulary"],
    logits: Float[Array, "batch sequence vocabulary"],
    ids: Int[Array, "batch sequence"],
    keep: Float[Array, "batch sequence"],
) -> Float[Array, "4"]:
    """Sums over next-token positions: both negative log-likelihoods (NLL), KL divergence and top-1 agreement.

    Position ``t`` predicts ``ids[t + 1]``. It counts where both tokens are real.

    Args:
        reference: Logits of the float model.
        logits: Logits of the quantized model.
        ids: Token ids.
        keep: 1 for real tokens, 0 for padding.

    Returns:
        NLL of the float model, NLL of the quantized model, ``sum p (log p - log q)``, and the number of agreements.
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
    """Accuracy of a quantized model on held-out data, or a sentence with the reason why there is none.

    Language models are compared by perplexity, KL divergence and top-1 agreement, all other models by their outputs;
    see `jaxq.runtime.language_model.is_language_model` and `jaxq.evaluation.outputs`.

    Args:
        reference: File of the float model.
        quantized: File of the quantized model.
        batches: Held-out data.
        progress: Called at the beginning and after each batch.
        form: The quantized file's form. For a form that onnxruntime cannot run on a CPU, the float model runs with the
            dequantized weights, and the result has "level 1" only.

    Raises:
        JaxqError: onnxruntime cannot run a model on the data.
    """
    if not batches:
        return "no held-out data was given"
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        runnable = runnable_file(reference, Path(folder) / "float.onnx")
        float_session = session(runnable, mapped=file_size(runnable) > LARGE)
        quantized_sessions = _sessions(quantized, form, Path(folder))
    output = logits_name(float_session)
    vocabulary = read_input_spec(load_model(reference)).vocabulary
    advance = progress("evaluate", len(batches))
    if output is None or not is_language_model(float_session, output, batches[0], vocabulary):
        return compare_outputs(float_session, quantized_sessions, batches, advance)
    return _compare_logits(float_session, quantized_sessions, output, batches, advance)


def _compare_logits(
    float_session: "Session",
    quantized_sessions: Mapping[str, "Session"],
    output: str,
    batches: Sequence[Batch],
    advance: "Callable[[], None]",
) -> Evaluation | str:
    """The figures of a language model; arguments as for `compare_outputs`, and the name of the output with logits."""
    sums = {setting: np.zeros(4) for setting in quantized_sessions}
    tokens = 0
    for batch in batches:
        ids = jnp.asarray(batch.feeds["input_ids"], jnp.int32)
        keep = jnp.ones(ids.shape, jnp.float32) if batch.keep is None else jnp.asarray(batch.keep, jnp.float32)
        tokens += int(jnp.sum(keep[:, 1:] * keep[:, :-1]))
        expected = to_jax(run(float_session, [output], batch.feeds)[output])
        if int(ids.max()) >= expected.shape[-1]:
            return f"output {output!r} of shape {list(expected.shape)} has no logit of token {int(ids.max())}"
        for setting, quantized_session in quantized_sessions.items():
            logits = to_jax(run(quantized_session, [output], batch.feeds)[output])
            sums[setting] += np.asarray(compare(expected, logits, ids, keep), np.float64)
        advance()
    if not tokens:
        return "the held-out text has no two real tokens in a row"
    means = {setting: total / tokens for setting, total in sums.items()}
    runtimes = {
        setting: Accuracy(perplexity=float(np.exp(nll)), kl=float(kl), top1=float(agreement))
        for setting, (_, nll, kl, agreement) in means.items()
    }
    reference_nll = next(iter(means.values()))[0]
    return Evaluation(tokens, float(np.exp(reference_nll)), runtimes)


def _sessions(quantized: Path, form: Form, folder: Path) -> dict[str, "Session"]:
    """A session for each runtime setting; files that replace the quantized one are written to the folder."""
    quantized = runnable_file(quantized, folder / "widened.onnx")
    if form.runs and not form.stores_accuracy_level:
        return {name: session(quantized, level) for name, level in RUNTIMES.items()}
    model = load_model(quantized)
    if not form.runs:
        float_model(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "MatMulNBits":  # its own level overrides the session's
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    save_model(model, folder / "exact.onnx", PROTOBUF_LIMIT)
    exact = {"level 1": session(folder / "exact.onnx", 1)}
    return exact | {"default": session(quantized)} if form.runs else exact
