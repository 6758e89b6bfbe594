"""AWQ's scales under searched block scales: candidates are compared by what these leave, against float64 numpy."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

import jaxq.methods.choose as methods
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.microscaling import MxFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.formats.registry import WeightFormat
from jaxq.methods.awq import ScaleChoice, awq_scale, awq_shifts, scaled_moment, search_shared_scales, weight_magnitude
from jaxq.methods.grids import IDENTITY, alpha_grid
from jaxq.methods.registry import METHODS, MethodSpec
from jaxq.numerics.moments import Moments
from tests.methods.test_choose import C_IN, TOKENS, data

DAMPING = 0.05
ALPHAS = np.array(alpha_grid(0.25), np.float32)
FORMATS: dict[str, WeightFormat] = {
    "int4": IntegerFormat(16, full_range=True),
    "uint4": IntegerFormat(16, use_zero_point=True),
    "nvfp4": Nvfp4Format(),
    "mxfp4": MxFormat("mxfp4"),
}
EACH_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
E2M1 = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3 = np.arange(127, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float64)  # those from 0 up


def grids(column: np.ndarray, top: float, fmt: WeightFormat) -> Iterator[np.ndarray]:
    """The values that a block of one column can be rounded to, for plain scales and then for every other candidate."""
    amax = abs(column).max()
    if isinstance(fmt, MxFormat):
        exponent = np.ceil(np.log2(amax / 6))
        yield from (E2M1 * 2.0 ** (exponent + more) for more in (0, -1, -2, 1))
    elif isinstance(fmt, Nvfp4Format):
        s2 = top / (6 * 448)
        code = abs(E4M3 - amax / (6 * s2)).argmin()
        yield from (E2M1 * E4M3[np.clip(code + step, 1, 126)] * s2 for step in (0, *range(-6, 8)))
    elif fmt.use_zero_point:
        ends = (1.06, 1.0, 0.93, 0.86, 0.79, 0.72, 0.65)
        for below, above in [(1.0, 1.0), *((below, above) for below in ends for above in ends)]:
            low = min(column.min(), 0) * below
            step = (max(column.max(), 0) * above - low) / 15
            yield (np.arange(16) - np.rint(-low / step)) * step
    else:
        peak = column[abs(column).argmax()]
        for ratio in (1.0, *np.linspace(0.6, 1.2, 25)):
            yield np.arange(-8, 8) * peak / -8 * ratio
            yield np.arange(-8, 8) * peak / 8 * ratio


def searched(z: np.ndarray, h: np.ndarray, fmt: WeightFormat) -> np.ndarray:
    """What is left of ``z`` when each block of each column has the candidate of least error, one after the other."""
    top, left = float(abs(z).max()), np.empty(z.shape)
    for start in range(0, len(z), fmt.block_size):
        rows = slice(start, min(start + fmt.block_size, len(z)))
        for i in range(z.shape[1]):
            column = z[rows, i]
            rounded = [g[abs(g - column[:, None]).argmin(axis=1)] for g in grids(column, top, fmt)]
            errors = [(r - column) @ h[rows, rows] @ (r - column) for r in rounded]
            left[rows, i] = rounded[int(np.argmin(errors))]
    return left


def reference(x: np.ndarray, parts: list[tuple[np.ndarray, WeightFormat]], columns: int = 0) -> np.ndarray:
    """[candidates, shifts, parts]: error of the outputs of each part, on a sample of its columns.

    Shifts are quarters of a power of two where one part has scales that are powers of two.
    """
    shares = np.array([w.shape[1] for w, _ in parts]) / sum(w.shape[1] for w, _ in parts)
    means = [np.asarray(weight_magnitude(jnp.asarray(w), fmt.block_size), np.float64) for w, fmt in parts]
    mean = jnp.asarray(sum(f * m for f, m in zip(shares, means, strict=True)), jnp.float32)
    h, a = x.T @ x / TOKENS, jnp.asarray(abs(x).mean(axis=0), jnp.float32)
    shifts = (0, 0.25, 0.5, 0.75) if any(isinstance(fmt, MxFormat) for _, fmt in parts) else (0,)
    losses = []
    for alpha, shift in [(alpha, shift) for alpha in ALPHAS for shift in shifts]:
        s = np.asarray(awq_scale(a, mean, jnp.float32(alpha)), np.float64) * (1 if alpha < 0 else 2**shift)
        scaled_h = h / np.outer(s, s)
        scaled_h += DAMPING * np.trace(scaled_h) / C_IN * np.eye(C_IN)
        row = []
        for w, fmt in parts:
            seen = w[:, np.linspace(0, w.shape[1] - 1, columns).round().astype(int)] if columns else w
            d = searched(seen * s[:, None], scaled_h, fmt) / s[:, None] - seen
            row.append(((x @ d) ** 2).sum() / TOKENS * w.shape[1] / seen.shape[1])
        losses.append(row)
    return np.array(losses).reshape(len(ALPHAS), len(shifts), len(parts))


def search(
    parts: list[tuple[np.ndarray, WeightFormat]],
    moments: Moments,
    damping: float | None = DAMPING,
    columns: int = 0,
    batch_size: int = 1,
) -> ScaleChoice:
    pairs = [(jnp.asarray(w), fmt) for w, fmt in parts]
    return search_shared_scales(pairs, moments, jnp.asarray(ALPHAS), columns, batch_size, damping)


@EACH_FORMAT
def test_losses_are_those_of_searched_block_scales(fmt):
    x, w, moments = data()
    choice = search([(w, fmt)], moments)
    want = reference(x, [(w, fmt)])[:, :, 0].min(axis=1)
    np.testing.assert_allclose(np.asarray(choice.losses), want, rtol=1e-4)
    assert int(choice.best) == int(np.argmin(want))
    plain = search([(w, fmt)], moments, damping=None)
    assert (np.asarray(choice.losses) < np.asarray(plain.losses)).mean() > 0.5


@pytest.mark.parametrize("columns", [0, 3], ids=["all", "sample"])
@pytest.mark.parametrize(("first", "second"), [("int4", "int4"), ("int4", "nvfp4"), ("uint4", "mxfp4")])
def test_siblings_take_the_least_sum(first, second, columns):
    x, w, moments = data(seed=1)
    parts = [(w[:, :4], FORMATS[first]), (w[:, 2:], FORMATS[second])]
    choice = search(parts, moments, columns=columns)
    want = reference(x, parts, columns).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(np.asarray(choice.losses), want, rtol=1e-4)
    assert int(choice.best) == int(np.argmin(want))


def test_the_sum_is_neither_siblings_own_choice():
    """Else the test above could not tell."""
    x, w, _ = data(seed=1)
    losses = reference(x, [(w[:, :4], FORMATS["int4"]), (w[:, 2:], FORMATS["nvfp4"])])[:, 0]
    assert len({int(losses[:, 0].argmin()), int(losses[:, 1].argmin()), int(losses.sum(axis=1).argmin())}) > 1


@pytest.mark.parametrize("name", ["awq_lite", "awq_full", "awq_gptq"])
def test_methods_that_search_block_scales_compare_by_them(name):
    """With a seed at which plain rounding would choose another scale."""
    for seed in range(20):
        _, w, moments = data(seed)
        plain, want = (search([(w, FORMATS["int4"])], moments, damping) for damping in (None, DAMPING))
        if int(plain.best) != int(want.best):
            break
    else:
        pytest.fail("no seed at which it makes a difference")
    part = (jnp.asarray(w), FORMATS["int4"])
    spec = MethodSpec(name, part[1], alpha_step=0.25, block_scales=name != "awq_gptq", damping=DAMPING)
    (choice,) = methods.choose(METHODS[name], [part], moments, spec)
    np.testing.assert_array_equal(np.asarray(choice.s), np.asarray(want.s))
    assert float(choice.alpha) == ALPHAS[int(want.best)]


@EACH_FORMAT
def test_candidates_in_batches_give_the_same(fmt):
    _, w, moments = data(seed=2)
    one, many = (search([(w, fmt)], moments, batch_size=size) for size in (1, 4))
    np.testing.assert_allclose(np.asarray(many.losses), np.asarray(one.losses), rtol=1e-5)
    assert int(many.best) == int(one.best)


@EACH_FORMAT
def test_ties_go_to_no_scaling(fmt):
    """Without activations every loss is zero."""
    moments = Moments(jnp.zeros((C_IN, C_IN)), jnp.zeros(C_IN), jnp.array(0, jnp.int32))
    choice = search([(data()[1], fmt)], moments)
    assert int(choice.best) == 0
    assert ALPHAS[0] == IDENTITY
    assert (np.asarray(choice.s) == 1).all()


def test_scaled_moment_is_that_of_the_divided_activation():
    x, _, moments = data()
    s = np.exp2(np.random.default_rng(0).uniform(-3, 3, C_IN))
    want = (x / s).T @ (x / s) / TOKENS
    np.testing.assert_allclose(np.asarray(scaled_moment(moments.h, jnp.asarray(s, jnp.float32))), want, rtol=1e-4)


@pytest.mark.parametrize("damping", [None, DAMPING], ids=["plain", "searched"])
def test_scales_for_powers_of_two_have_the_best_factor(damping):
    """Of its quarters; AWQ's scale alone puts the greatest weights of blocks anywhere between two powers."""
    fmt, taken = FORMATS["mxfp4"], set()
    for seed in range(4):
        x, w, moments = data(seed)
        choice = search([(w, fmt)], moments, damping)
        alpha, mean = jnp.float32(ALPHAS[int(choice.best)]), weight_magnitude(jnp.asarray(w), fmt.block_size)
        plain, losses = np.asarray(awq_scale(moments.a, mean, alpha), np.float64), []
        for shift in (0, 0.25, 0.5, 0.75):
            s = plain * 2**shift
            h = x.T @ x / TOKENS / np.outer(s, s)
            h += DAMPING * np.trace(h) / C_IN * np.eye(C_IN)
            z = np.asarray(w * s[:, None], np.float32)
            left = fmt.round_trip(jnp.asarray(z)) if damping is None else searched(w * s[:, None], h, fmt)
            losses.append(((x @ (np.asarray(left) / s[:, None] - w)) ** 2).sum() / TOKENS)
        best = int(np.argmin(losses))
        np.testing.assert_allclose(np.asarray(choice.s), plain * 2 ** (best / 4), rtol=1e-5)
        np.testing.assert_allclose(float(choice.losses[choice.best]), losses[best], rtol=1e-4)
        taken.add(best)
    assert len(taken) > 1


def test_a_common_factor_is_looked_for_where_scales_are_powers_of_two_alone():
    assert awq_shifts([FORMATS["int4"], FORMATS["nvfp4"], MxFormat("mxfp8")]) == (0,)
    assert awq_shifts([FORMATS["int4"], FORMATS["mxfp4"]]) == (0, 0.25, 0.5, 0.75)
