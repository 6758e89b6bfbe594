"""Strict settings for the tests: no silent promotion, shapes checked at run time, repeatable hypothesis."""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

# Before jax is imported, and inherited by the workers and subprocesses: most of the tests' time is compilation, and
# two workers, or the next run, need not do it again. What is found depends on the compiled program and on versions.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# Has to come before the first import of the modules: their jaxtyping annotations are then checked at every trace.
CHECKED = ("numerics", "formats", "methods.awq", "methods.choose", "methods.measure", "methods.registry")
install_import_hook([f"jaxq.{name}" for name in CHECKED], "beartype.beartype")

# After the hook: these import jaxq.
from jaxq.pipeline.compiled import release_programs  # noqa: E402
from tests.support.command_line import cache, jaxq  # noqa: E402, F401
from tests.support.decoder import decoder  # noqa: E402, F401
from tests.support.round_trip import round_trip  # noqa: E402, F401

hypothesis.settings.register_profile("jaxq", deadline=None, derandomize=True, max_examples=20)
# For `nox -s fuzz`: other examples at each run, and a line that repeats the one that failed.
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "jaxq"))


# Of the imports' end: a machine under load takes longer to get here, and shall test as much all the same.
START = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stop-after", type=float, default=math.inf, help="seconds after which tests are skipped")


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = float(item.config.getoption("--stop-after", math.inf) or math.inf)
    if time.monotonic() - START > limit:
        pytest.skip(f"{limit:g} seconds are over: `nox -s test` runs all")


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> None:
    """A worker compiles more programs in a whole run of the tests than Linux lets a process map into memory."""
    release_programs()


@pytest.fixture(autouse=True, scope="module")
def strict_promotion() -> Iterator[None]:
    """Mixed dtypes or ranks in one operation are errors."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
