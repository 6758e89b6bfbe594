"""`jaxq.numerics.jit` gives a Python function that does what `jax.jit` does."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.formats.integers import IntegerFormat
from jaxq.numerics.integer import find_scales, rtn
from jaxq.numerics.jit import jit
from jaxq.numerics.moments import accumulate_in_place, zero_sums


def test_it_is_a_function_with_the_name_signature_and_docstring_of_the_original():
    assert inspect.isfunction(rtn)
    assert (rtn.__module__, rtn.__qualname__) == ("jaxq.numerics.integer", "rtn")
    assert list(inspect.signature(rtn).parameters) == ["w", "s", "block_size", "quantize_axis", "zp", "num_bits"]
    assert inspect.unwrap(rtn).__doc__ == rtn.__doc__
    assert inspect.isfunction(IntegerFormat.quantize)
    assert pickle.loads(pickle.dumps(rtn)) is rtn


def test_it_is_traced_once_for_a_shape_and_a_static_value():
    traced = []

    @jit(static_argnames=("count", "offset"))
    def repeat(x: jax.Array, count: int, offset: float = 0.0) -> jax.Array:
        traced.append((x.shape, count, offset))
        return jnp.tile(x, count) + offset

    for value in (1.0, 2.0):
        for count in (2, 3):
            np.testing.assert_array_equal(repeat(jnp.full(2, value), count=count), np.full(2 * count, value))
    assert traced == [((2,), 2, 0.0), ((2,), 3, 0.0)]


def test_a_method_takes_its_instance_as_static():
    traced = []

    class Scaler:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        @jit(static_argnames="self")
        def scale(self, x: jax.Array) -> jax.Array:
            traced.append(self.factor)
            return x * self.factor

    double, triple = Scaler(2.0), Scaler(3.0)
    for scaler in (double, triple, double):
        np.testing.assert_array_equal(scaler.scale(jnp.ones(2)), np.full(2, scaler.factor))
    assert traced == [2.0, 3.0]


def test_it_nests_in_transformations():
    w = jnp.arange(64.0).reshape(2, 8, 4)
    s = jnp.ones((1, 4))
    single = np.stack([rtn(one, s, 8) for one in w])
    np.testing.assert_array_equal(jax.vmap(lambda one: rtn(one, s, 8))(w), single)
    again = jax.jit(rtn, static_argnames=("block_size", "quantize_axis", "num_bits"))
    np.testing.assert_array_equal(again(w[0], s, block_size=8), single[0])
    np.testing.assert_array_equal(jax.grad(lambda w: find_scales(w, 8)[0].sum())(w[0]).sum(), np.float32(4 / 7))


def test_the_compiled_function_can_be_reached():
    w = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    compiled = find_scales.lower(w, 8).compile()  # pyright: ignore[reportFunctionMemberAccess]
    assert compiled(jnp.ones((8, 4)))[0].shape == (1, 4)


def test_donated_arrays_are_gone():
    sums = zero_sums(4)
    jax.block_until_ready(accumulate_in_place(sums, jnp.ones((2, 4)), jnp.ones(2)))
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(sums.xx)
