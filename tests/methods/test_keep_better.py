"""jaxq.methods.keep_better: round to nearest replaces what a misled search chose. Groups of a graph: tests/search."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.methods.choose import choose
from jaxq.methods.keep_better import _lost_columns, _replace_columns, _same_tensor_scale, keep_better
from jaxq.methods.measure import measure
from jaxq.methods.registry import METHODS, MethodSpec
from jaxq.numerics.moments import Moments

C_IN, C_OUT, TOKENS = 40, 6, 50
SPEC = MethodSpec("awq_lite", IntegerFormat(16), alpha_step=1.0, search_columns=1)


def data(misled: bool) -> tuple[jax.Array, Moments]:
    """Two large channels; if ``misled``, all columns but the first have their largest weights there."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(TOKENS, C_IN)) * rng.uniform(0.2, 2, size=C_IN)
    x[:, [3, 21]] *= 10
    w = rng.standard_t(4, size=(C_IN, C_OUT)).astype(np.float32)
    if misled:
        w[[3, 21], 1:] *= 10
    h, a = jnp.asarray(x.T @ x / TOKENS, jnp.float32), jnp.asarray(abs(x).mean(axis=0), jnp.float32)
    return jnp.asarray(w), Moments(h, a, jnp.array(TOKENS, jnp.int32))


def assert_equal(got: object, want: object) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("misled", [False, True], ids=["better", "worse"])
def test_plain_rounding_stands_in_for_a_choice_that_is_worse(misled):
    """The search looks at the first column only; the comparison is over all of them."""
    w, moments = data(misled)
    parts = [(w, SPEC.fmt)]
    searched, plain = (choose(METHODS[name], parts, moments, SPEC)[0] for name in ("awq_lite", "rtn"))
    losses = []
    for choice in (searched, plain):
        errors = measure(w, choice, moments, SPEC.fmt)
        assert errors.output is not None
        losses.append(float(jnp.sum(errors.output)))
    assert (losses[0] > losses[1]) == misled

    (choice,), (errors,) = keep_better(parts, [[C_OUT]], moments, METHODS["awq_lite"], SPEC)
    assert_equal(choice, plain if misled else searched)
    assert_equal(errors, measure(w, choice, moments, SPEC.fmt))


def test_a_choice_without_a_number_for_its_error_is_not_taken():
    """Large weights times AWQ's scales can leave the range of float16."""
    w, moments = data(misled=False)
    fmt = IntegerFormat(16, scale_dtype="float16")
    spread = jnp.ones(C_IN).at[0].set(1e4).at[1].set(1e-4)
    moments = Moments(moments.h * spread[:, None] * spread[None, :], moments.a * spread, moments.tokens)
    _, (errors,) = keep_better([(1e4 * w, fmt)], [[C_OUT]], moments, METHODS["awq_lite"], MethodSpec("awq_lite", fmt))
    assert errors.output is not None and np.isfinite(np.asarray(errors.output)).all()


def test_without_data_the_choice_is_the_methods():
    w, _ = data(misled=False)
    choices, (errors,) = keep_better([(w, SPEC.fmt)], [[C_OUT]], None, METHODS["rtn_dq"], SPEC)
    assert_equal(choices, choose(METHODS["rtn"], [(w, SPEC.fmt)], None, SPEC))
    assert errors.output is None


@pytest.mark.parametrize("fmt", [Nvfp4Format(), IntegerFormat(16, scale_dtype=FLOAT8)], ids=str)
def test_siblings_with_the_same_scale_of_all_are_decided_one_by_one(fmt):
    w, moments = data(misled=False)
    spec = MethodSpec("gptq", fmt, damping=10.0)
    plain = choose(METHODS["rtn"], [(w, fmt)], None, spec)[0]
    codes = np.asarray(plain.quantized.q).copy()
    codes[:, 2:4] = codes[::-1, 2:4]
    misled = replace(plain, quantized=replace(plain.quantized, q=jnp.asarray(codes)))
    assert _same_tensor_scale(misled, plain)
    errors = measure(w, misled, moments, fmt)
    assert errors.output_rtn is not None
    better = replace(errors, output_rtn=errors.output_rtn * jnp.array([9.0, 9.0, 1.0, 1.0, 9.0, 9.0]))
    lost = _lost_columns([misled], [better], [[2, 2, 2]], [False])[0]
    assert lost.tolist() == [False, False, True, True, False, False]
    assert_equal(_replace_columns(misled, plain, lost), plain)


@pytest.mark.parametrize("fmt", [IntegerFormat(16), IntegerFormat(16, use_zero_point=True), Nvfp4Format()], ids=str)
def test_plain_rounding_stands_in_weight_by_weight(fmt):
    """The second of three siblings was chosen for another weight than the one it is judged by.

    NVFP4's siblings share a scale, here another one than plain rounding's: all of them are rounded plainly or none.
    """
    w, moments = data(misled=False)
    spec = MethodSpec("gptq", fmt, damping=10.0)
    misled = choose(METHODS["gptq"], [(w.at[:, 2:4].multiply(3.0), fmt)], moments, spec)
    plain = choose(METHODS["rtn"], [(w, fmt)], None, spec)[0]
    together = not _same_tensor_scale(misled[0], plain)
    assert together == isinstance(fmt, Nvfp4Format)
    lost = _lost_columns(misled, [measure(w, misled[0], moments, fmt)], [[2, 2, 2]], [together])[0]
    assert lost.tolist() == [together, together, True, True, together, together]
    mixed = _replace_columns(misled[0], plain, lost)
    got, rounded, gptq = (np.asarray(fmt.dequantize(c.quantized)) for c in (mixed, plain, misled[0]))
    np.testing.assert_array_equal(got[:, lost], rounded[:, lost])
    np.testing.assert_array_equal(got[:, ~lost], gptq[:, ~lost])
