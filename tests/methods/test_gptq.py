"""jaxq.methods.gptq against a plain float64 reference, and jaxq.methods.block_scales against a search by hand."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.formats.base import Scales
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.microscaling import MxFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.methods.block_scales import low_rank, search_block_scales
from jaxq.methods.gptq import compensated_share, damp, feedback, gptq_round
from jaxq.numerics.moments import output_error

FORMATS: dict[str, WeightFormat] = {
    "int4": IntegerFormat(16, full_range=True),
    "int4_positive": IntegerFormat(32),
    "uint4": IntegerFormat(16, use_zero_point=True),
    "int8_channel": IntegerFormat(-1, 8),
    "uint3_float16": IntegerFormat(16, 3, use_zero_point=True, scale_dtype="float16"),
    "nvfp4": Nvfp4Format(),
    "mxfp4": MxFormat("mxfp4"),
    "mxfp8": MxFormat("mxfp8"),
}
EACH_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


def data(c_in: int = 200, c_out: int = 12, tokens: int = 150, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight with heavy tails, and the moments of activations that hang together; fewer tokens than channels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, c_in)) * rng.uniform(0.1, 3, size=c_in) + rng.normal(size=(tokens, 1))
    return rng.standard_t(4, size=(c_in, c_out)).astype(np.float32), (x.T @ x / tokens).astype(np.float32)


def loss(d: np.ndarray, h: np.ndarray) -> np.ndarray:
    d, h = d.astype(np.float64), h.astype(np.float64)
    return np.einsum("io,ij,jo->o", d, h, d)


def nearest(row: np.ndarray, steps: np.ndarray, zp: np.ndarray | float, values: np.ndarray) -> np.ndarray:
    """The nearest of ``(values - zp) * step`` for each column, by looking at all of them."""
    grid = (values[:, None] - zp) * steps
    return np.take_along_axis(grid, abs(grid - row).argmin(axis=0)[None], 0)[0]


def code_values(fmt: WeightFormat) -> np.ndarray:
    if isinstance(fmt, IntegerFormat):
        half = 2 ** (fmt.num_bits - 1)
        return np.arange(2 * half, dtype=np.float64) - (0 if fmt.use_zero_point else half)
    if fmt.dtype == "mxfp8":
        values = np.arange(256, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float64)
        return np.unique(values[np.isfinite(values)])
    half = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    return np.unique(np.concatenate([half, -half]))


def steps_of(fmt: WeightFormat, scales: Scales, c_in: int) -> tuple[np.ndarray, np.ndarray | float]:
    """Step and zero point of every row, from the stored arrays, by numpy."""
    block = c_in if fmt.block_size == -1 else fmt.block_size
    rows = np.arange(c_in) // block
    if isinstance(fmt, MxFormat):
        return 2.0 ** (np.asarray(scales.s, np.float64)[rows] - 127), 0.0
    s = np.asarray(scales.s, np.float64)[rows] * (1.0 if scales.s2 is None else float(scales.s2))
    return s, 0.0 if scales.zp is None else np.asarray(scales.zp, np.float64)[rows]


def reference_gptq(w: np.ndarray, h: np.ndarray, fmt: WeightFormat, scales: Scales, damping: float) -> np.ndarray:
    """The published loop: the inverse is updated row by row, without any factor."""
    steps, zp = steps_of(fmt, scales, len(w))
    values, left = code_values(fmt), w.astype(np.float64).copy()
    h = h.astype(np.float64) + damping * np.diagonal(h).mean() * np.eye(len(h))
    order = np.argsort(-np.diagonal(h), kind="stable")
    inverse, rounded, zps = np.linalg.inv(h), np.zeros_like(left), np.broadcast_to(zp, w.shape)
    for i in order:
        rounded[i] = nearest(left[i], steps[i], zps[i], values)
        left -= np.outer(inverse[:, i], (left[i] - rounded[i]) / inverse[i, i])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1  # done with: only its own row still has an entry, and is not read again
    return rounded


@EACH_FORMAT
def test_gptq_equals_a_float64_reference(fmt):
    w, h = data()
    scales = fmt.plain_scales(jnp.asarray(w))
    got = np.asarray(gptq_round(jnp.asarray(w), jnp.asarray(h), scales, fmt, damping=0.05))
    want = reference_gptq(w, h, fmt, scales, 0.05)
    # Float32 turns a tie or two the other way, and what follows in that column with it.
    same = np.isclose(got, want, rtol=1e-5, atol=1e-6).all(axis=0)
    assert same.sum() >= 10, same  # of 12
    np.testing.assert_allclose(loss(got - w, h).sum(), loss(want - w, h).sum(), rtol=0.02)


@EACH_FORMAT
def test_values_are_the_formats_own(fmt):
    w, h = data()
    scales = search_block_scales(jnp.asarray(w), jnp.asarray(h), fmt)
    values = gptq_round(jnp.asarray(w), jnp.asarray(h), scales, fmt, descent_passes=1)
    quantized = fmt.encoded(values, scales)
    np.testing.assert_allclose(fmt.dequantize(quantized), values, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(quantized.s, scales.s)


@EACH_FORMAT
def test_each_step_loses_less(fmt):
    w, h = data()
    j, jh = jnp.asarray(w), jnp.asarray(h)
    scales = search_block_scales(j, damp(jh, 0.01), fmt)
    searched = loss(np.asarray(fmt.dequantize(fmt.encoded(j, scales))) - w, h).sum()
    compensated = loss(np.asarray(gptq_round(j, jh, scales, fmt, 0.01)) - w, h).sum()
    refined = loss(np.asarray(gptq_round(j, jh, scales, fmt, 0.01, descent_passes=3)) - w, h).sum()
    assert compensated < 0.5 * searched
    assert refined <= compensated


@EACH_FORMAT
def test_a_sweep_never_loses(fmt):
    w, h = data(tokens=400, seed=1)
    j, jh = jnp.asarray(w), jnp.asarray(h)
    scales, damped = fmt.plain_scales(j), np.asarray(damp(jh, 0.01))
    losses = [loss(np.asarray(gptq_round(j, jh, scales, fmt, 0.01, descent_passes=n)) - w, damped) for n in range(4)]
    for before, after in pairwise(losses):
        assert (after <= before * (1 + 1e-4)).all()


@EACH_FORMAT
def test_scales_are_the_best_of_the_candidates(fmt):
    """Block by block and column by column, by a loop in float64: exactly up to 16 rows, else nearly."""
    w, h = data(c_in=72, c_out=5)
    chosen = search_block_scales(jnp.asarray(w), jnp.asarray(h), fmt)
    all_scales = [fmt.plain_scales(jnp.asarray(w)), *(fmt.candidate(jnp.asarray(w), p) for p in fmt.candidates())]
    block = len(w) if fmt.block_size == -1 else fmt.block_size

    def errors(scales: Scales) -> np.ndarray:
        steps, zp = steps_of(fmt, scales, len(w))
        zps = np.broadcast_to(zp, w.shape)
        d = np.stack([nearest(w[i], steps[i], zps[i], code_values(fmt)) for i in range(len(w))]) - w
        cut = [slice(i, i + block) for i in range(0, len(w), block)]
        return np.stack([loss(d[c], h[c, c]) for c in cut])

    candidates = np.array([errors(scales) for scales in all_scales])
    best, got = candidates.min(axis=0), errors(chosen)
    if block <= 16:
        np.testing.assert_allclose(got, best, rtol=1e-3, atol=1e-9)
    assert got.sum() - best.sum() <= 0.1 * (candidates[0].sum() - best.sum()) + 1e-6 * best.sum()


def test_a_few_directions_hold_most_of_a_block():
    """Of all blocks at once: the diagonal is never passed, all columns give the matrix, zeros give zeros."""
    h = np.stack([data(c_in=48, seed=seed)[1] for seed in range(3)] + [np.zeros((48, 48), np.float32)])
    missing = []
    for rank in (1, 4, 16, 48):
        v = np.asarray(low_rank(jnp.asarray(h), rank), np.float64)
        assert v.shape == (4, 48, rank)
        rest = h - v @ v.swapaxes(1, 2)
        assert (np.diagonal(rest, axis1=1, axis2=2) > -1e-5 * h.max()).all()
        missing.append(np.trace(rest, axis1=1, axis2=2).sum())
    assert all(before > after for before, after in pairwise(missing))
    np.testing.assert_allclose(v @ v.swapaxes(1, 2), h, rtol=1e-4, atol=1e-4 * h.max())


def test_candidates_hold_what_the_docs_say():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
    both = IntegerFormat(16, full_range=True)
    s = np.stack([np.asarray(both.candidate(w, p).s) for p in both.candidates()])
    assert (s > 0).any(axis=0).all()
    assert (s < 0).any(axis=0).all()
    assert (
        np.stack([np.asarray(IntegerFormat(16).candidate(w, p).s) for p in IntegerFormat(16).candidates()]) > 0
    ).all()
    four = Nvfp4Format()
    plain = np.asarray(four.plain_scales(w).s.astype(jnp.float32))
    up = np.asarray(four.candidate(w, jnp.int32(4)).s.astype(jnp.float32))
    ratio = (up / plain)[plain < 300]  # the greatest number of E4M3 has none above
    assert ((ratio > 1.35) & (ratio < 1.55)).all()
    e = [np.asarray(MxFormat("mxfp4").candidate(w, p).s, int) for p in MxFormat("mxfp4").candidates()]
    plain_e = np.asarray(MxFormat("mxfp4").plain_scales(w).s, int)
    assert {int((x - plain_e).max()) for x in e} == {-1, -2, 1}


@pytest.mark.parametrize("c_in", [1, 5, 128, 129, 300])
def test_any_number_of_rows(c_in):
    w, h = data(c_in=c_in, c_out=3, tokens=64)
    fmt = IntegerFormat(32)
    scales = fmt.plain_scales(jnp.asarray(w))
    got = np.asarray(gptq_round(jnp.asarray(w), jnp.asarray(h), scales, fmt, 0.01, descent_passes=1))
    assert got.shape == w.shape
    assert np.isfinite(got).all()


def test_without_coupling_it_is_round_to_nearest():
    w, h = data(c_in=40)
    fmt = IntegerFormat(16, full_range=True)
    scales = fmt.plain_scales(jnp.asarray(w))
    got = gptq_round(jnp.asarray(w), jnp.diag(jnp.diagonal(jnp.asarray(h))), scales, fmt, descent_passes=1)
    np.testing.assert_allclose(got, fmt.round_trip(jnp.asarray(w)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["zeros", "rank one", "dead channel", "not definite", "huge"])
def test_moments_that_cannot_be_factored(kind):
    w, h = data(c_in=160, c_out=4)
    if kind == "zeros":
        h = np.zeros_like(h)
    elif kind == "rank one":
        h = np.ones_like(h)
    elif kind == "dead channel":
        h[7], h[:, 7] = 0, 0
    elif kind == "not definite":
        h = h - 0.3 * np.eye(len(h), dtype=np.float32) * np.linalg.eigvalsh(h)[-1]
    else:
        h = h * 1e30
    fmt = IntegerFormat(16)
    scales = fmt.plain_scales(jnp.asarray(w))
    got = np.asarray(gptq_round(jnp.asarray(w), jnp.asarray(h), scales, fmt, 0.0, descent_passes=1))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(fmt.dequantize(fmt.encoded(jnp.asarray(got), scales)), got, rtol=1e-5, atol=1e-6)
    if kind in ("zeros", "dead channel"):
        rows = slice(None) if kind == "zeros" else slice(7, 8)
        np.testing.assert_allclose(got[rows], np.asarray(fmt.round_trip(jnp.asarray(w)))[rows], rtol=1e-6)


def test_the_feedback():
    _, h = data(c_in=90, tokens=400)
    u, taken = feedback(jnp.asarray(h), 0.01)
    u = np.asarray(u, np.float64)
    damped = h.astype(np.float64) + 0.01 * np.diagonal(h).mean() * np.eye(len(h))
    inverse = np.linalg.inv(u)
    d = np.diagonal(inverse @ damped @ inverse.T)
    assert (d > 0).all()
    np.testing.assert_allclose((u * d) @ u.T, damped, rtol=1e-4, atol=1e-4)
    assert float(taken) == np.float32(0.01)
    assert (np.tril(u, -1) == 0).all() and (np.diagonal(u) == 1).all()
    _, taken = feedback(jnp.ones((64, 64)), 0.0)  # singular: it takes some
    assert float(taken) > 0


def test_shapes_that_do_not_fit():
    w, h = (jnp.asarray(x) for x in data(c_in=32))
    with pytest.raises(JaxqError, match="they need"):
        gptq_round(w, h[:16, :16], IntegerFormat(16).plain_scales(w), IntegerFormat(16))
    with pytest.raises(JaxqError, match="they need"):
        search_block_scales(w, h[:16, :16], IntegerFormat(16))


@pytest.mark.parametrize("made_for", [(16, 4), (8, 8), (16, 1)], ids=["fewer columns", "smaller blocks", "one column"])
def test_scales_of_another_shape_are_refused(made_for):
    block, columns = made_for
    w, h = jnp.ones((32, 8)), jnp.eye(32)
    scales = IntegerFormat(block).plain_scales(w[:, :columns])
    with pytest.raises(JaxqError, match=r"needs \[2, 8\]"):
        gptq_round(w, h, scales, IntegerFormat(16))


@pytest.mark.parametrize(
    ("fmt", "other"),
    [
        (IntegerFormat(16), make_format("nvfp4", 16)),
        (IntegerFormat(16, use_zero_point=True), IntegerFormat(16)),
        (IntegerFormat(16), IntegerFormat(16, use_zero_point=True)),
        (make_format("nvfp4", 16), IntegerFormat(16)),
        (make_format("mxfp4", 32), IntegerFormat(32)),
    ],
    ids=lambda fmt: fmt.dtype,
)
def test_scales_of_another_format_are_refused(fmt, other):
    w, h = (jnp.asarray(x) for x in data(c_in=32))
    with pytest.raises(JaxqError, match=f"those of {fmt.dtype} are .*: take fmt.plain_scales"):
        gptq_round(w, h, other.plain_scales(w), fmt)


def test_scales_of_a_narrower_float_are_taken():
    w, h = (jnp.asarray(x) for x in data(c_in=32))
    scales = IntegerFormat(16, scale_dtype="float16").plain_scales(w)
    assert scales.s.dtype == jnp.float16
    assert gptq_round(w, h, scales, IntegerFormat(16)).shape == w.shape


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_share_of_narrow_moments(dtype):
    h = jnp.array([[4.0, 2.0], [2.0, 4.0]], dtype)
    assert float(compensated_share(h, 0.0)) == pytest.approx(0.875)


def test_the_share_that_is_left_is_that_of_many_columns():
    """Errors of all sizes in a step, so that the greatest of a row does not count."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(400, 24)) @ rng.normal(size=(24, 24))
    h = jnp.asarray(x.T @ x / 400, jnp.float32)
    w = jnp.asarray(rng.normal(size=(24, 3000)), jnp.float32)
    fmt = IntegerFormat(block_size=24, num_bits=8)  # fine steps: nothing is cut off
    scales = fmt.plain_scales(w)
    even = Scales(jnp.broadcast_to(scales.s.max(), scales.s.shape))
    error = gptq_round(w, h, even, fmt, 0.0) - w
    nearest = fmt.round_to(w, fmt.grid(even, 24)) - w
    want = float(jnp.sum(output_error(error, h)) / jnp.sum(output_error(nearest, h)))
    assert float(compensated_share(h, 0.0)) == pytest.approx(want, rel=0.05)


def test_the_share_of_what_cannot_be_factored_is_all():
    assert float(compensated_share(jnp.full((4, 4), jnp.nan), 0.05)) == 1.0
