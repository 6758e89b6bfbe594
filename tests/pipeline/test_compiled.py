"""Compiled programs are dropped before they take all memory maps of the process."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxq.pipeline import compiled
from jaxq.pipeline.compiled import release_programs


def maps() -> int:
    with Path("/proc/self/maps").open("rb") as lines:
        return sum(1 for _ in lines)


@pytest.fixture
def programs() -> list[object]:
    """Programs that take at least 200 memory maps, as long as JAX holds them."""
    functions = []
    for shift in range(12):
        function = jax.jit(lambda x, shift=shift: jnp.sort(x + shift) * jnp.sin(x).sum())
        function(jnp.ones(8 + shift))
        functions.append(function)
    return functions


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux counts memory maps")
def test_programs_are_dropped_above_the_share_alone(programs, monkeypatch, tmp_path):
    before = maps()
    assert not release_programs(share=1.0)
    limit = tmp_path / "max_map_count"
    limit.write_text(f"{2 * before}\n")
    monkeypatch.setattr(compiled, "_LIMIT", limit)
    assert not release_programs(share=0.9)
    assert maps() >= before
    assert release_programs(share=0.25)
    assert maps() <= before - 100
    assert programs[0](jnp.ones(8)).shape == (8,)  # type: ignore[operator]


def test_systems_without_counts_keep_their_programs(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "_MAPS", tmp_path / "missing")
    assert not release_programs(share=0.0)
