"""The training script: batches depend on the step only, and a resumed run ends as an uninterrupted one does."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from jaxq.embedded import ModelConfig

jax = pytest.importorskip("jax")
pytest.importorskip("optax")
EXPERIMENT = Path(__file__).parents[2] / "experiments" / "embedded"
TINY = ModelConfig(vocabulary=64, hidden=8, layers=1, heads=2, kv_heads=1, head_size=4, ffn=12, context=16)


@pytest.fixture
def train(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENT))
    train = importlib.import_module("train")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield train


def test_batches_of_an_epoch_cover_the_stream_once(train):
    settings = train.TrainConfig(steps=8, batch=4, learning_rate=1e-2, seed=3)
    stream = np.arange(16 * 17 + 3)
    batches = [train.batch_of(stream, step, settings, 16) for step in range(4)]
    again = [train.batch_of(stream, step, settings, 16) for step in range(4)]
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert np.unique(np.concatenate(batches)).size == 4 * 4 * 16
    assert not np.array_equal(batches[0], train.batch_of(stream, 4, settings, 16))


def test_interrupted_run_ends_where_an_uninterrupted_one_does(train, tmp_path):
    settings = train.TrainConfig(steps=4, batch=2, learning_rate=1e-2, seed=0, warmup=1)
    stream = np.random.default_rng(0).integers(64, size=300)

    def advance(progress, until):
        weights, state = progress.weights, progress.state
        for step in range(progress.step, until):
            ids = train.batch_of(stream, step, settings, 16)
            weights, state, _ = train.update(weights, state, ids, step, config=TINY, train=settings)
        return train.Progress(weights, state, until)

    whole = advance(train.start(TINY, settings), 4)
    path = tmp_path / "checkpoint.safetensors"
    train.save_checkpoint(path, advance(train.start(TINY, settings), 2), {"run": 1})
    rest = advance(train.load_checkpoint(path, train.start(TINY, settings), {"run": 1}), 4)
    assert all(np.array_equal(whole.weights[name], rest.weights[name]) for name in whole.weights)
    assert train.update._cache_size() == 1
    with pytest.raises(SystemExit, match="other settings or text"):
        train.load_checkpoint(path, whole, {"run": 2})
