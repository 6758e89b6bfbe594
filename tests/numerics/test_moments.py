"""jaxq.numerics.moments against float64 numpy on the activations themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.numerics.moments import (
    Moments,
    accumulate,
    accumulate_in_place,
    finish,
    mean_moments,
    output_error,
    panels,
    shrunk,
    zero_sums,
)

WIDTHS = pytest.mark.parametrize("c_in", [37, 200], ids=["one_panel", "three_panels"])


def activation_values(tokens: int, c_in: int, seed: int = 0) -> np.ndarray:
    """Correlated channels of very different sizes, none of mean zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, c_in)) + 0.5 * rng.normal(size=(tokens, 1)) + 0.3
    return (x * np.geomspace(0.01, 30, c_in)).astype(np.float32)


def moments_of(x: np.ndarray, keep: np.ndarray | None = None) -> Moments:
    keep = np.ones(len(x), np.float32) if keep is None else keep
    return finish(accumulate(zero_sums(x.shape[1]), jnp.asarray(x), jnp.asarray(keep)))


def assert_moments_of(moments: Moments, x: np.ndarray) -> None:
    """Relative to the size of the two channels, as entries of ``h`` may cancel."""
    exact = x.astype(np.float64)
    h, root = exact.T @ exact / len(x), np.sqrt((exact**2).mean(axis=0))
    assert (abs(np.asarray(moments.h) - h) <= 2e-6 * np.outer(root, root)).all()
    np.testing.assert_allclose(np.asarray(moments.a), abs(exact).mean(axis=0), rtol=2e-6)
    assert int(moments.tokens) == len(x)


@WIDTHS
def test_batches_add_up_to_all_tokens(c_in):
    x = activation_values(3 * 32, c_in)
    sums = zero_sums(c_in)
    for batch in np.split(x, 3):
        sums = accumulate(sums, jnp.asarray(batch), jnp.ones(32))
    moments = finish(sums)
    assert_moments_of(moments, x)
    np.testing.assert_array_equal(np.asarray(moments.h), np.asarray(moments.h).T)


def test_in_place_or_not_is_the_same():
    x, keep = jnp.asarray(activation_values(32, 37)), jnp.ones(32)
    sums = accumulate(zero_sums(37), x, keep)
    again = accumulate(sums, x, keep)
    for got, want in zip(jax.tree.leaves(accumulate_in_place(sums, x, keep)), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_activations_of_another_width_are_refused():
    with pytest.raises(JaxqError, match=r"x has shape \[32, 20\].* 37 channels"):
        accumulate(zero_sums(37), jnp.ones((32, 20)), jnp.ones(32))


@pytest.mark.parametrize("padding", [0.0, 1e30, np.inf, np.nan], ids=str)
def test_padding_does_not_count(padding):
    x = activation_values(32, 37)
    keep = np.random.default_rng(1).integers(0, 2, size=32).astype(np.float32)
    padded = np.where(keep[:, None] > 0, x, np.float32(padding))
    assert_moments_of(moments_of(padded, keep), x[keep > 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_activations_are_summed_in_float32(dtype):
    x = activation_values(32, 37).astype(jnp.dtype(dtype))
    moments = moments_of(x)
    assert moments.h.dtype == moments.a.dtype == jnp.float32
    assert_moments_of(moments, x.astype(np.float32))


def test_no_token_gives_zeros():
    moments = moments_of(np.full((32, 37), np.nan, np.float32), np.zeros(32, np.float32))
    assert int(moments.tokens) == 0
    assert not np.asarray(moments.h).any()
    assert not np.asarray(moments.a).any()
    assert not np.asarray(finish(zero_sums(37)).h).any()


def test_mean_moments_weighs_by_tokens():
    parts = [
        activation_values(32, 37, seed=1),
        activation_values(32, 37, seed=2)[:8],
        activation_values(32, 37, seed=3),
    ]
    joined = mean_moments([moments_of(x) for x in parts])
    assert_moments_of(joined, np.concatenate(parts))
    alone = moments_of(parts[0])
    assert mean_moments([alone]) is alone


def test_mean_moments_without_tokens():
    empty = finish(zero_sums(37))
    assert not np.asarray(mean_moments([empty, empty]).h).any()
    x = activation_values(32, 37)
    assert_moments_of(mean_moments([empty, moments_of(x)]), x)


@pytest.mark.parametrize("c_in", [1, 37, 63, 64, 127, 128, 129, 200, 511, 512, 513, 576, 1537, 4097])
def test_panels_cover_every_row_once(c_in):
    cuts = panels(c_in)
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(c_in))
    assert len(cuts) <= 4
    assert len(cuts) == 1 or cuts[0][1] >= 64


@WIDTHS
@pytest.mark.parametrize("tokens", [32, 96], ids=["fewer_tokens_than_channels", "more"])
def test_output_error_is_the_error_of_the_outputs(c_in, tokens):
    """What the searches rest on: losses from ``h`` are losses from ``x``."""
    x = activation_values(tokens, c_in)
    d = np.random.default_rng(2).normal(size=(c_in, 5)).astype(np.float32)
    got = np.asarray(output_error(jnp.asarray(d), moments_of(x).h))
    outputs = x.astype(np.float64) @ d
    np.testing.assert_allclose(got, (outputs**2).sum(axis=0) / tokens, rtol=1e-5)


def test_output_error_uses_the_whole_of_h():
    """Every entry of a dense symmetric matrix counts, once."""
    c_in = 200
    h = np.random.default_rng(3).uniform(1, 2, size=(c_in, c_in)).astype(np.float32)
    h += h.T
    d = np.random.default_rng(4).uniform(1, 2, size=(c_in, 5)).astype(np.float32)
    want = np.einsum("io,ij,jo->o", d, h.astype(np.float64), d, optimize=True)
    np.testing.assert_allclose(np.asarray(output_error(jnp.asarray(d), jnp.asarray(h))), want, rtol=1e-6)


def test_no_error_is_exactly_zero():
    h = moments_of(activation_values(96, 37)).h
    assert not np.asarray(output_error(jnp.zeros((37, 5)), h)).any()


def test_moments_are_pytrees():
    moments = moments_of(activation_values(32, 37))
    doubled = jax.tree.map(lambda leaf: leaf + leaf, moments)
    assert isinstance(doubled, Moments)
    assert int(doubled.tokens) == 64


def test_shrinking_is_as_if_more_tokens_had_shown_no_coupling():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 6)) + rng.normal(size=(50, 1))
    h = x.T @ x / 50
    # 25 tokens with the same energy in each channel, and signs that cancel out.
    more = np.repeat(np.sqrt(np.diagonal(h))[None], 25, axis=0)
    coupled = x.T @ x + np.diag(np.diagonal(more.T @ more))
    got = np.asarray(shrunk(jnp.asarray(h, jnp.float32), jnp.int32(50), 25.0))
    np.testing.assert_allclose(got, coupled / 75, rtol=1e-5)
    np.testing.assert_array_equal(shrunk(jnp.asarray(h, jnp.float32), jnp.int32(50), 0.0), h.astype(np.float32))
    assert np.isfinite(np.asarray(shrunk(jnp.zeros((3, 3)), jnp.int32(0), 0.0))).all()
