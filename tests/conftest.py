"""Strict settings for the tests: no silent promotion, shapes checked at run time, repeatable hypothesis."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# Has to come before the first import of the modules: their jaxtyping annotations are then checked at every trace.
MATHS = ("blocks", "integer", "float4", "mx", "formats", "packing", "statistics", "awq", "methods")
install_import_hook([f"jaxq.{name}" for name in MATHS], "beartype.beartype")

hypothesis.settings.register_profile("jaxq", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile("jaxq")


@pytest.fixture(autouse=True, scope="module")
def strict_promotion() -> Iterator[None]:
    """Mixed dtypes or ranks in one operation are errors."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
