"""Sum second moments, and drift, of activations over batches."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.calibration.patches import cut_patches
from jaxq.errors import JaxqError
from jaxq.graph.activations import Activation
from jaxq.numerics.drift import Drift, drift_product
from jaxq.numerics.moments import Moments, MomentSums, accumulate_in_place, finish, zero_sums

# Each new number of rows compiles anew, so varying numbers are padded: to powers of two, above this to its multiples.
_ROUND = 256

Array = jax.Array | np.ndarray


class Collector:
    """Sums of one activation's second moments, for each matrix of the weight.

    The matrices share one sum as long as all of them multiply the same rows.

    Args:
        activation: The activation.
    """

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self._sums: list[MomentSums] = []

    def add(self, x: jax.Array | np.ndarray, keep: np.ndarray | None) -> bool:
        """Adds a batch; returns True if padding could be left out, False if the shape shows no token axis.

        Args:
            x: The activation.
            keep: 1 for real tokens and 0 for padding, [batch, sequence]; None where everything is real. Of a stack,
                rows of zeros do not count either: they pad the tokens of an expert.

        Raises:
            JaxqError: a stack multiplies a vector.
        """
        if self.activation.patches is not None:
            for piece in cut_patches(np.asarray(x), self.activation.patches):
                self._add_rows(piece, np.ones(piece.shape[1:2], np.float32))
            return True
        count, c_in = self.activation.count, x.shape[-1]
        if count == 1:
            rows, mask, masked = _token_rows(x, keep)
            self._add(0, c_in, rows, mask)
            return masked
        if x.ndim < 2:
            raise JaxqError(
                f"activation {self.activation.value.name!r} is a vector that a stack multiplies: exclude it"
            )
        x = np.asarray(x)
        stack = np.moveaxis(x, -3, 0) if x.ndim > 2 and x.shape[-3] == count else x.reshape(1, *x.shape)
        mask, masked = token_mask(stack.shape[1:], keep)
        self._add_rows(stack.reshape(len(stack), -1, c_in), mask, count_zeros=False)
        return masked

    def finish(self) -> Iterator[tuple[str, Moments]]:
        """The moments with their keys: `Activation.shared_key`, or one of `Activation.keys` for each matrix.

        Each sum is dropped when its moments are handed out.
        """
        keys = [self.activation.shared_key] if len(self._sums) == 1 else self.activation.keys
        for key in keys:
            yield key, finish(self._sums.pop(0))

    def _add_rows(self, rows: np.ndarray, mask: np.ndarray, count_zeros: bool = True) -> None:
        """Adds rows [matrices, tokens, c_in]; one entry, or equal entries, count for all matrices."""
        # Matrices that multiply the same rows share one sum; a comparison is far cheaper than a product each.
        if len(self._sums) < 2:
            if (rows == rows[:1]).all():
                rows = rows[:1]
            elif self._sums:
                # Until now all matrices saw the same rows: each continues from the common sum.
                self._sums = [jax.tree.map(jnp.copy, self._sums[0]) for _ in rows]
        # One entry of rows stands for all sums.
        for i in range(max(len(rows), len(self._sums))):
            matrix_rows = rows[min(i, len(rows) - 1)]
            real = mask if count_zeros else mask * (matrix_rows != 0).any(axis=-1)
            self._add(i, matrix_rows.shape[-1], *_padded(matrix_rows, real.astype(np.float32)))

    def _add(self, index: int, c_in: int, rows: jax.Array | np.ndarray, mask: np.ndarray) -> None:
        if index == len(self._sums):
            self._sums.append(zero_sums(c_in))
        if len(rows):
            self._sums[index] = accumulate_in_place(self._sums[index], jnp.asarray(rows), jnp.asarray(mask))


class DriftCollector:
    """Sums for `jaxq.numerics.drift.Drift`, of an activation that weights multiply as it is.

    Args:
        widths: Columns of each weight that multiplies it.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = widths
        self._input: jax.Array | None = None
        self._outputs: list[jax.Array | None] = [None] * len(widths)
        self._tokens = 0

    def add(
        self, x: Array, x_float: Array, residuals: Sequence[tuple[Array, Array] | None], keep: np.ndarray | None
    ) -> None:
        """Adds a batch.

        Args:
            x, x_float: The activation [..., c_in] of the quantized model, and of the float model.
            residuals: For each sibling the value that its product is added to, in both models; None where there is
                none. A value that the addition broadcasts to [..., c_out] is left out.
            keep: As for `Collector.add`.
        """
        rows, mask, _ = _token_rows(x, keep)
        mask = jnp.asarray(mask)
        self._tokens += int(mask.sum())
        self._input = _sum(self._input, drift_product(jnp.asarray(rows), _difference(x, x_float), mask))
        for i, (pair, width) in enumerate(zip(residuals, self._widths, strict=True)):
            if pair is not None and pair[0].shape == (*x.shape[:-1], width):
                self._outputs[i] = _sum(self._outputs[i], drift_product(jnp.asarray(rows), _difference(*pair), mask))

    def finish(self) -> Drift | None:
        """The means over tokens; None without any token."""
        if self._input is None or not self._tokens:
            return None
        return Drift(self._input / self._tokens, tuple(None if s is None else s / self._tokens for s in self._outputs))


def _difference(x: Array, x_float: Array) -> jax.Array:
    """Float model minus quantized model, in rows as `_token_rows` makes them."""
    difference = jnp.asarray(x_float, jnp.float32) - jnp.asarray(x, jnp.float32)
    return jnp.asarray(_token_rows(difference, None)[0])


def _sum(total: jax.Array | None, new: jax.Array) -> jax.Array:
    return new if total is None else total + new


def _token_rows(x: Array, keep: np.ndarray | None) -> tuple[Array, np.ndarray, bool]:
    """Rows [tokens, c] of an activation, their mask, and True if padding could be masked."""
    mask, masked = token_mask(x.shape, keep)
    rows = x.reshape(-1, x.shape[-1])
    if x.ndim == 2:
        rows, mask = _padded(np.asarray(rows), mask)
    return rows, mask, masked


def _padded(rows: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [tokens, c_in] and their mask, padded with rows of zeros that do not count."""
    size = len(rows)
    padded_size = -(-size // _ROUND) * _ROUND if size > _ROUND else 1 << max(0, size - 1).bit_length()
    if size in (0, padded_size):
        return rows, mask
    padding = [(0, padded_size - size)]
    return np.pad(rows, [*padding, (0, 0)]), np.pad(mask, padding)


def token_mask(shape: tuple[int, ...], keep: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """A flat mask of the rows of an activation [..., c_in] that are real tokens, and True if ``keep`` fits its shape.

    Example:
        >>> token_mask((1, 3, 8), np.array([[1, 1, 0]]))[0].tolist()
        [1.0, 1.0, 0.0]
    """
    rows = int(np.prod(shape[:-1]))
    if keep is None or keep.all():
        return np.ones(rows, np.float32), True
    if shape[:-1] == keep.shape or shape[:-1] == (keep.size,):
        return keep.ravel().astype(np.float32), True
    return np.ones(rows, np.float32), False
