"""The strict settings of conftest.py are really on."""

import jax.numpy as jnp
import jaxtyping
import pytest

from jaxq.numerics.blocks import split
from jaxq.numerics.moments import output_error, zero_sums


def test_mixed_dtypes_are_refused():
    with pytest.raises(ValueError, match="dtype_promotion=strict"):
        jnp.add(jnp.ones(2, jnp.float16), jnp.ones(2, jnp.float32))


def test_mixed_ranks_are_refused():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.add(jnp.ones((2, 2)), jnp.ones(2))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: output_error(jnp.ones((3, 2)), jnp.ones((2, 2))), id="shapes_that_disagree"),
        pytest.param(lambda: output_error(jnp.ones((2, 2), jnp.int32), jnp.ones((2, 2))), id="dtype"),
        pytest.param(lambda: split(jnp.ones((2, 2)), 2.0), id="not_an_array"),  # pyright: ignore[reportArgumentType]
        pytest.param(lambda: zero_sums("3"), id="string"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_annotations_are_checked(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()
