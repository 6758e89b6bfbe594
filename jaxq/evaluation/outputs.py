"""How far a quantized model's outputs are from the float model's: for models that predict no next token."""

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
"""What outputs are called that hold keys and values for the next call."""


@dataclass(frozen=True)
class OutputError:
    """Distance of one output from the float model's, under one runtime setting.

    Attributes:
        cosine: Mean over rows of the cosine between both models' rows; NaN without rows.
        cosine_min: The least of them.
        relative_error: ``||a - b|| / ||a||`` over all rows, ``a`` the float model's.
        nonfinite_rows: Rows that are NaN or infinite although the float model's are not; in none of the figures.
    """

    cosine: float
    cosine_min: float
    relative_error: float
    nonfinite_rows: int


@dataclass(frozen=True)
class JudgedOutput:
    """One output.

    Attributes:
        name: Its name.
        rows: Rows that count; see `output_rows`.
        zero_rows: Of them, those that are zero in the float model: they have no cosine, but count in the error.
        nonfinite_rows: Rows that are NaN or infinite in the float model: left out.
        runtimes: Figures by runtime setting.
    """

    name: str
    rows: int
    zero_rows: int
    nonfinite_rows: int
    runtimes: dict[str, OutputError]


@dataclass(frozen=True)
class OutputComparison:
    """Figures of a model that is no language model.

    Attributes:
        samples: Number of held-out samples.
        outputs: What was compared.
        passed_over: Outputs that were not, each with the reason.
    """

    samples: int
    outputs: tuple[JudgedOutput, ...]
    passed_over: dict[str, str]


@jax.jit
def compare_rows(
    reference: Float[Array, "rows features"], other: Float[Array, "rows features"], keep: Float[Array, " rows"]
) -> Float[Array, "9"]:
    """Sums over rows.

    Args:
        reference: The float model's.
        other: The quantized model's.
        keep: 1 for rows that count, 0 for padding.

    Returns:
        Of the rows that count: those finite in the reference; of them zero ones; those not finite in the reference;
        those finite in the reference alone; those with a cosine; the cosines' sum and least (2 without any); squared
        error; squared reference. The last two are over rows that are finite in both.
    """
    a, b = reference.astype(jnp.float32), other.astype(jnp.float32)
    counts = keep > 0
    finite_a, finite_b = (jnp.isfinite(x).all(axis=1) for x in (a, b))
    both = counts & finite_a & finite_b
    peak_a, peak_b = (jnp.max(jnp.abs(x), axis=1, keepdims=True, initial=0.0) for x in (a, b))
    zero = counts & finite_a & (peak_a[:, 0] == 0)
    # by their greatest values first, so that no square overflows or vanishes
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
    """An output as a matrix: its rows and features, and which rows count.

    The last of two or three axes holds features, so an output [batch, sequence, features] has a row for each token, and
    those of padding do not count; more axes (images) make one row of a sample, one axis or none makes one row of all.

    Args:
        shape: The output's.
        keep: 1 for real tokens and 0 for padding, [batch, sequence]; None where everything is real.

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
    """Adds up what `compare_rows` gives, in float64."""

    total: np.ndarray = field(default_factory=lambda: np.zeros(9))
    least: float = 2.0

    def add(self, sums: np.ndarray) -> None:
        self.total = self.total + sums
        self.least = min(self.least, float(sums[6]))

    def error(self) -> OutputError:
        _, _, _, broken, count, cosines, _, error, energy = self.total
        ratio = math.sqrt(error / energy) if energy else (math.inf if error else 0.0)
        nan = float("nan")
        return OutputError(
            cosine=cosines / count if count else nan,
            cosine_min=self.least if count else nan,
            relative_error=float(ratio) if self.total[0] > broken else nan,
            nonfinite_rows=int(broken),
        )


def compare_outputs(
    reference: "Session", others: Mapping[str, "Session"], batches: Sequence[Batch], advance: "Callable[[], None]"
) -> OutputComparison | str:
    """Cosine and relative error of every float output, or a sentence that says why there are none.

    Args:
        reference: The float model.
        others: The quantized one under each runtime setting.
        batches: Held-out data, at least one batch.
        advance: Called after each batch.

    Raises:
        JaxqError: onnxruntime cannot run a model on the data.
    """
    names, passed_over = _judged(reference)
    if not names:
        return f"the model has no output to compare: {', '.join(f'{n} is {r}' for n, r in passed_over.items())}"
    sums = {(name, setting): _Sums() for name in names for setting in others}
    samples = 0
    for batch in batches:
        samples += len(next(iter(batch.feeds.values())))
        expected = {name: to_jax(value) for name, value in run(reference, names, batch.feeds).items()}
        for setting, other in others.items():
            got = run(other, names, batch.feeds)
            for name, a in expected.items():
                matrix, keep = output_rows(a.shape, batch.keep)
                b = to_jax(got[name])
                found = compare_rows(a.reshape(matrix), b.reshape(matrix), jnp.asarray(keep))
                sums[name, setting].add(np.asarray(found, np.float64))
        advance()
    outputs = []
    for name in names:
        parts = {setting: sums[name, setting] for setting in others}
        rows, zero, nonfinite = (int(n) for n in next(iter(parts.values())).total[:3])
        outputs.append(JudgedOutput(name, rows, zero, nonfinite, {k: part.error() for k, part in parts.items()}))
    return OutputComparison(samples, tuple(outputs), passed_over)


def _judged(model: "Session") -> tuple[list[str], dict[str, str]]:
    """Names of the float outputs, and the others with the reason why they are not compared."""
    passed_over = {}
    for name, kind in output_types(model).items():
        if name.startswith(CACHES):
            passed_over[name] = "a cache for the next call"
        elif not kind.dtype.is_floating_point():
            passed_over[name] = f"of type {kind.dtype}"
    return [name for name in output_types(model) if name not in passed_over], passed_over
