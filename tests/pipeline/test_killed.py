"""A run that is killed at any moment resumes when it is started again, and ends with the same bytes."""

import multiprocessing
import random
import time
from multiprocessing.context import BaseContext, ForkServerContext
from pathlib import Path

import jax
import pytest

from jaxq.formats.integers import IntegerFormat
from jaxq.forms.registry import find_form
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.job import Job
from jaxq.pipeline.quantize import quantize_model
from tests.support.decoder import decoder_batches

KILLS = 10


def work(source: Path, target: Path, cache: Path, compiled: Path) -> None:
    """What is killed: AWQ with clipping in many small windows."""
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    spec = MethodSpec("awq_full", IntegerFormat(block_size=32), alpha_step=0.5, clip_step=0.5)
    job = Job(source, target, spec, find_form("dq"), ("*lm_head*",), cache, window_bytes=40_000)
    quantize_model(job, decoder_batches())


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that have jaxq imported when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.test_killed"])
    return context


def finish(processes: BaseContext, *args: Path) -> None:
    process = processes.Process(target=work, args=args)  # pyright: ignore[reportAttributeAccessIssue]
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.long
def test_killed_at_random_moments(processes, decoder, tmp_path):
    compiled = tmp_path / "compiled"
    finish(processes, decoder, tmp_path / "warm.onnx", tmp_path / "c0", compiled)
    start = time.perf_counter()
    finish(processes, decoder, tmp_path / "whole.onnx", tmp_path / "c1", compiled)
    seconds = time.perf_counter() - start
    expected = (tmp_path / "whole.onnx").read_bytes()
    rng, kills, runs, resumed = random.Random(20), 0, 0, 0
    while kills < KILLS:
        cache, target = tmp_path / f"cache-{runs}", tmp_path / f"{runs}" / "out.onnx"
        for _ in range(4):
            process = processes.Process(target=work, args=(decoder, target, cache, compiled))
            process.start()
            process.join(rng.uniform(0, seconds))
            process.kill()
            process.join()
            killed = process.exitcode != 0
            kills += killed
            assert process.exitcode == (-9 if killed else 0)
            assert killed or target.read_bytes() == expected
            assert not target.exists() or target.read_bytes() == expected  # whole or absent
            if not killed:
                break
            resumed += bool(list(cache.glob("run-*/w*/*")))
        finish(processes, decoder, target, cache, compiled)
        assert target.read_bytes() == expected
        assert not list(cache.glob("run-*"))
        runs += 1
    assert resumed  # some of them had something to go on from
