"""Where a command keeps compiled functions, and that the environment has the last word."""

from pathlib import Path

import jax
import pytest

from jaxq.harness.command import _keep_compiled

NAMES = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")


@pytest.fixture
def told(monkeypatch) -> dict[str, object]:
    """What jax is told, in place of telling it: other tests' functions lie where the environment says."""
    found: dict[str, object] = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    for name in NAMES:
        monkeypatch.delenv(f"JAX_{name.upper()}", raising=False)
    return found


def test_compiled_functions_lie_in_the_cache(told):
    _keep_compiled(Path("cache"))
    assert told == {f"jax_{NAMES[0]}": str(Path("cache/xla")), f"jax_{NAMES[1]}": 0.2}


def test_what_the_environment_says_stands(told, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    _keep_compiled(Path("cache"))
    assert told == {f"jax_{NAMES[1]}": 0.2}
