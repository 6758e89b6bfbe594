"""The whole command, killed at any moment and given again; and given twice."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ARGUMENTS = (
    *("method=awq_lite", "method.alpha_step=0.25", "window_gb=0.002"),
    *("calib.samples=4", "calib.length=64", "eval.samples=8", "eval.length=128"),
)
RANDOM_KILLS = 3


@dataclass(frozen=True)
class Command:
    """``python -m jaxq.run`` with a cache and a folder of its own."""

    cache: Path
    folder: Path

    def start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"JAXQ_CACHE": str(self.cache), "JAX_COMPILATION_CACHE_DIR": str(self.cache / "xla")}
        command = [sys.executable, "-m", "jaxq.run", *ARGUMENTS, f"hydra.run.dir={self.folder}"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def finish(self) -> str:
        process = self.start()
        out, _ = process.communicate()
        assert process.returncode == 0, out
        return out

    def kill_when(self, reached: Callable[[], object]) -> bool:
        """Whether it was killed before it ended by itself."""
        process = self.start()
        while process.poll() is None and not reached():
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode in (0, -9)
        return process.returncode != 0

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Command, float]:
    """A run that nothing stopped, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    command = Command(folder / "cache", folder / "out")
    start = time.perf_counter()
    command.finish()
    return command, time.perf_counter() - start


def after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


@pytest.mark.long
def test_a_command_that_is_killed_ends_with_the_same_bytes(whole, tmp_path):
    uninterrupted, seconds = whole
    expected = uninterrupted.model.read_bytes()
    command, rng = Command(tmp_path / "cache", tmp_path / "out"), random.Random(4)
    for _ in range(RANDOM_KILLS):
        command.kill_when(after(rng.uniform(0.2, 1) * seconds))
        assert not command.model.exists() or command.model.read_bytes() == expected  # whole or absent
    (command.folder / "report.json").unlink(missing_ok=True)
    command.model.unlink(missing_ok=True)
    assert command.kill_when(command.model.exists)  # it is written: what is left is the evaluation
    assert not (command.folder / "report.json").exists()
    assert "the run resumes its work" in command.finish()
    assert command.model.read_bytes() == expected
    assert not list(command.cache.glob("run-*"))
    report, other = command.report, uninterrupted.report
    assert report["notices"] == ["this command was stopped before: the run resumes its work"]
    assert report["notes"] == [*report["notices"], *other["notes"]]
    for part in ("accuracy", "layers", "skipped", "hashes", "size", "method"):
        assert report[part] == other[part]


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """The numbers and words of nested lists and dictionaries, with where they are."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        yield f"{path}.length", len(value)
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


@pytest.mark.long
def test_the_same_command_twice(whole, tmp_path):
    """With another folder and an empty cache: the same bytes, and a report that differs in seconds and memory alone."""
    first, _ = whole
    second = Command(tmp_path / "cache", tmp_path / "out")
    second.finish()
    assert second.model.read_bytes() == first.model.read_bytes()
    assert (second.folder / "layers.csv").read_bytes() == (first.folder / "layers.csv").read_bytes()
    old, new = dict(leaves(first.report)), dict(leaves(second.report))
    assert old.keys() == new.keys()
    differing = {path for path in old if old[path] != new[path]}
    assert differing <= {path for path in old if path.startswith((".seconds.", ".peak_mb.")) or "].seconds" in path}
