"""Distances between the outputs of a quantized and a float model, for models that are no language models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxq.runtime.batches import Batch
from jaxq.runtime.session import output_types, run, to_jax

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxq.runtime.session import Session


CACHES = ("present", "past")
"""Beginnings of the names of outputs with keys and values for the next call."""


@dataclass(frozen=True)
class OutputError:
    """Distance of one output from the float model's, under one runtime setting.

    Attributes:
        cosine: Mean of the cosine between the rows of both models; NaN without rows.
        cosine_min: Least of these cosines.
        relative_error: ``||a - b|| / ||a||`` over all rows, where ``a`` is the float model's output.
        nonfinite_rows: Number of rows with NaN or infinite numbers where the float model's row is finite. The other
            figures leave these rows out.
    """

    cosine: float
    cosine_min: float
    relative_error: float
    nonfinite_rows: int


@dataclass(frozen=True)
class JudgedOutput:
    """One output of a model, compared.

    Attributes:
        name: Name of the output.
        rows: Number of rows that count; see `output_rows`.
        zero_rows: Number of these rows that are zero in the float model. They have no cosine, but count in the error.
        nonfinite_rows: Number of rows with NaN or infinite numbers in the float model. No figure counts them.
        runtimes: Distances by runtime setting.
    """

    name: str
    rows: int
    zero_rows: int
    nonfinite_rows: int
    runtimes: dict[str, OutputError]


@dataclass(frozen=True)
class OutputComparison:
    """Distances of all outputs of a model that is no language model.

    Attributes:
        samples: Number of held-out samples.
        outputs: The outputs that were compared.
        not_compared: Reason by name for the outputs that were not compared.
    """

    samples: int
    outputs: tuple[JudgedOutput, ...]
    not_compared: dict[str, str]


@jax.jit
def compare_rows(
    reference: Float[Array, "rows features"], other: Float[Array, "rows features"], keep: Float[Array, " rows"]
) -> Float[Array, "9"]:
    """Sums over the rows of one output.

    Args:
        reference: Rows of the float model.
        other: Rows of the quantized model.
        keep: 1 for rows that count, 0 for padding.

    Returns:
        Nine numbers for the rows that count: rows finite in the reference; rows of these that are zero; rows not finite
        in the reference; rows finite in the reference only; rows with a cosine; sum of the cosines; least cosine (2
        without any); squared error; squared reference. The last two are sums over the rows that are finite in both.
    """
    a, b = reference.astype(jnp.float32), other.astype(jnp.float32)
    counts = keep > 0
    finite_a, finite_b = (jnp.isfinite(x).all(axis=1) for x in (a, b))
    both = counts & finite_a & finite_b
    peak_a, peak_b = (jnp.max(jnp.abs(x), axis=1, keepdims=True, initial=0.0) for x in (a, b))
    zero = counts & finite_a & (peak_a[:, 0] == 0)
    # Rows are first divided by their greatest values, so that no square overflows or underflows.
    unit_a, unit_b = (x / jnp.where(p > 0, p, 1.0) for x, p in ((a, peak_a), (b, peak_b)))
    norms = jnp.linalg.norm(unit_a, axis=1) * jnp.linalg.norm(unit_b, axis=1)
    cosine = jnp.where(norms > 0, jnp.sum(unit_a * unit_b, axis=1) / jnp.where(norms > 0, norms, 1.0), 0.0)
    has_cosine = both & ~zero
    cosines = jnp.clip(cosine, -1.0, 1.0)
    sums = (
        jnp.sum(counts & finite_a),
        jnp.sum(zero),
        jnp.sum(counts & ~finite_a),
        jnp.sum(counts & finite_a & ~finite_b),
        jnp.sum(has_cosine),
        jnp.sum(jnp.where(has_cosine, cosines, 0.0)),
        jnp.min(jnp.where(has_cosine, cosines, 2.0), initial=2.0),
        jnp.sum(jnp.where(both[:, None], jnp.square(a - b), 0.0)),
        jnp.sum(jnp.where(both[:, None], jnp.square(a), 0.0)),
    )
    return jnp.stack([jnp.asarray(s, jnp.float32) for s in sums])


def output_rows(shape: tuple[int, ...], keep: np.ndarray | None) -> tuple[tuple[int, int], np.ndarray]:
    """Shape [rows, features] of an output as a matrix, and a mask of the rows that count.

    An output with two or three axes has its features on the last one: [batch, sequence, features] has a row for each
    token, and padding does not count. An output with more axes, such as images, has a row for each sample. An output
    with one axis or none is one row.

    Args:
        shape: Shape of the output.
        keep: 1 for real tokens and 0 for padding, [batch, sequence]; None without padding.

    Returns:
        Rows and features, and 1 or 0 for each row in float32.

    Example:
        >>> output_rows((1, 3, 8), np.array([[1, 1, 0]]))
        ((3, 8), array([1., 1., 0.], dtype=float32))
        >>> output_rows((4, 3, 8, 8), None)[0]
        (4, 192)
    """
    if len(shape) < 2:
        rows, features = 1, math.prod(shape)
    elif len(shape) > 3:
        rows, features = shape[0], math.prod(shape[1:])
    else:
        rows, features = math.prod(shape[:-1]), shape[-1]
    mask = np.ones(rows, np.float32)
    if keep is not None and shape[:-1] in (keep.shape, (keep.size,)):
        mask = (np.asarray(keep) != 0).astype(np.float32).ravel()
    return (rows, features), mask


@dataclass
class _Sums:
    """Totals of `compare_rows` over batches, in float64."""

    total: np.ndarray = field(default_factory=lambda: np.zeros(9))
    least_cosine: float = 2.0

    def add(self, sums: np.ndarray) -> None:
        self.total = self.total + sums
        self.least_cosine = min(self.least_cosine, float(sums[6]))

    def error(self) -> OutputError:
        _, _, _, nonfinite, count, cosines, _, squared_error, squared = self.total
        ratio = math.sqrt(squared_error / squared) if squared else (math.inf if squared_error else 0.0)
        return OutputError(
            cosine=cosines / count if count else math.nan,
            cosine_min=self.least_cosine if count else math.nan,
            relative_error=float(ratio) if self.total[0] > nonfinite else math.nan,
            nonfinite_rows=int(nonfinite),
        )


def compare_outputs(
    reference: "Session", others: Mapping[str, "Session"], batches: Sequence[Batch], advance: "Callable[[], None]"
) -> OutputComparison | str:
    """Cosine and relative error of every float output, or a sentence with the reason why there are none.

    Args:
        reference: Session of the float model.
        others: Sessions of the quantized model by runtime setting.
        batches: Held-out data, at least one batch.
        advance: Called after each batch.

    Raises:
        JaxqError: onnxruntime cannot run a model on the data.
    """
    names, not_compared = _float_outputs(reference)
    if not names:
        reasons = ", ".join(f"{name} is {reason}" for name, reason in not_compared.items())
        return f"the model has no output to compare: {reasons}"
    sums = {(name, setting): _Sums() for name in names for setting in others}
    samples = 0
    for batch in batches:
        samples += len(next(iter(batch.feeds.values())))
        expected = {name: to_jax(value) for name, value in run(reference, names, batch.feeds).items()}
        for setting, other in others.items():
            outputs = run(other, names, batch.feeds)
            for name, a in expected.items():
                matrix, keep = output_rows(a.shape, batch.keep)
                b = to_jax(outputs[name])
                row_sums = compare_rows(a.reshape(matrix), b.reshape(matrix), jnp.asarray(keep))
                sums[name, setting].add(np.asarray(row_sums, np.float64))
        advance()
    judged = tuple(_judge(name, {setting: sums[name, setting] for setting in others}) for name in names)
    return OutputComparison(samples, judged, not_compared)


def _judge(name: str, sums: Mapping[str, _Sums]) -> JudgedOutput:
    """The result for one output, from its sums by runtime setting."""
    # The float model's rows are the same under all settings.
    rows, zero_rows, nonfinite_rows = (int(count) for count in next(iter(sums.values())).total[:3])
    return JudgedOutput(name, rows, zero_rows, nonfinite_rows, {setting: s.error() for setting, s in sums.items()})


def _float_outputs(model: "Session") -> tuple[list[str], dict[str, str]]:
    """Names of the float outputs, and the reason for each other output why it is not compared."""
    not_compared = {}
    for name, kind in output_types(model).items():
        if name.startswith(CACHES):
            not_compared[name] = "a cache for the next call"
        elif not kind.dtype.is_floating_point():
            not_compared[name] = f"of type {kind.dtype}"
    return [name for name in output_types(model) if name not in not_compared], not_compared
