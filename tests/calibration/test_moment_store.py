"""Moments on disk are found by the content of model and data, and by nothing else."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.calibration.moment_store import MomentStore
from jaxq.errors import JaxqError
from jaxq.files.hashing import hash_arrays, hash_files
from jaxq.numerics.moments import Moments
from jaxq.pipeline.outcome import Outcome
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.models import HIDDEN, tokens
from tests.support.running import quantize, save, with_weights

KEEP = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])


class Setup:
    """A model, calibration data and a cache; `again` quantizes and tells what was found."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.model, self.x, self.keep = models.mlp(), tokens(2, 4, HIDDEN), KEEP
        self.source = save(self.model, folder)

    def again(self) -> Outcome:
        batches = [Batch({"x": self.x}, self.keep)]
        return quantize(self.source, self.folder / "out.onnx", "awq_lite", batches, cache=self.cache)

    def files(self) -> list[Path]:
        return sorted(self.cache.rglob("*.safetensors"))


@pytest.fixture
def setup(tmp_path) -> Setup:
    setup = Setup(tmp_path)
    first = setup.again()
    assert (first.moments_from_cache, len(first.windows), len(setup.files())) == (0, 1, 2)
    return setup


def test_a_second_run_computes_nothing(setup):
    written = (setup.folder / "out.onnx").read_bytes()
    second = setup.again()
    assert (second.moments_from_cache, second.windows, second.tokens) == (2, (), 5)
    assert (setup.folder / "out.onnx").read_bytes() == written


def test_another_name_for_the_same_model_finds_its_moments(setup):
    setup.source = save(setup.model, setup.folder, "copy.onnx")
    assert setup.again().moments_from_cache == 2


def other_data(setup: Setup) -> None:
    setup.x = setup.x + np.float32(1)


def other_shape(setup: Setup) -> None:
    setup.x = setup.x.reshape(1, 8, HIDDEN)
    setup.keep = KEEP.reshape(1, 8)


def other_mask(setup: Setup) -> None:
    setup.keep = np.ones_like(KEEP)


def other_weights(setup: Setup) -> None:
    up = models.weight(HIDDEN, models.FFN, seed=5)
    setup.source = save(with_weights(setup.model, {"up": up}), setup.folder)


@pytest.mark.parametrize("change", [other_data, other_shape, other_mask, other_weights], ids=lambda f: f.__name__)
def test_what_belongs_to_something_else_is_not_used(setup, change):
    change(setup)
    second = setup.again()
    assert (second.moments_from_cache, len(second.windows)) == (0, 1)
    assert second.tokens == (setup.keep.sum() if setup.keep is not None else 8)


def test_external_data_is_part_of_the_model(tmp_path):
    setup = Setup(tmp_path)
    setup.source = save(setup.model, tmp_path, external=True)
    assert setup.again().moments_from_cache == 0
    data = tmp_path / "model.onnx.weights"
    data.write_bytes(data.read_bytes()[:-4] + np.float32(3).tobytes())
    assert setup.again().moments_from_cache == 0
    assert setup.again().moments_from_cache == 2


def test_missing_moments_alone_are_computed(setup):
    setup.files()[0].unlink()
    second = setup.again()
    assert second.moments_from_cache == 1
    assert len(setup.files()) == 2


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None], ids=["empty", "text", "cut off"])
def test_a_damaged_file_is_computed_again(setup, damage):
    written = (setup.folder / "out.onnx").read_bytes()
    for path in setup.files():
        path.write_bytes(path.read_bytes()[:200] if damage is None else damage)
    second = setup.again()
    assert (second.moments_from_cache, len(second.windows)) == (0, 1)
    assert (setup.folder / "out.onnx").read_bytes() == written


def test_a_cache_that_cannot_be_written_is_named(setup):
    setup.cache = setup.folder / "file"
    setup.cache.write_text("")
    with pytest.raises(JaxqError, match=r"cannot write to the cache '.*file.*; give another cache_dir"):
        setup.again()


def example() -> Moments:
    return Moments(jnp.eye(3), jnp.arange(3.0), jnp.array(7))


def test_what_is_put_is_got(tmp_path):
    store = MomentStore(tmp_path, "m" * 64, "d" * 64)
    name = "/odd name/é\x00[0]:*?" * 30
    assert name not in store
    store.put(name, example())
    assert name in store
    got = store[name]
    assert [np.asarray(v).tolist() for v in (got.h, got.a, got.tokens)] == [np.eye(3).tolist(), [0, 1, 2], 7]
    assert [p.suffix for p in store.folder.iterdir()] == [".safetensors"]
    with pytest.raises(KeyError, match="other"):
        store["other"]


@pytest.mark.parametrize(("model", "data"), [("n", "d"), ("m", "e")])
def test_a_store_is_one_models_and_one_data_sets(model, data, tmp_path):
    MomentStore(tmp_path, "m" * 64, "d" * 64).put("x", example())
    assert "x" not in MomentStore(tmp_path, model * 64, data * 64)


@pytest.mark.parametrize(
    "other",
    [
        [{"x": np.array([1, 3])}],
        [{"y": np.array([1, 2])}],
        [{"x": np.array([[1, 2]])}],
        [{"x": np.array([1, 2], np.int32)}],
        [{"x": np.array([1, 2])}, {}, {"x": np.array([1, 2])}],
        [],
    ],
    ids=["values", "name", "shape", "type", "repeated", "nothing"],
)
def test_the_datas_hash_sees(other):
    first = [{"x": np.array([1, 2])}]
    assert hash_arrays(first) == hash_arrays([{"x": np.array([1, 2])}])
    assert hash_arrays(first) != hash_arrays(other)


def test_the_order_of_inputs_does_not_matter_and_that_of_samples_does():
    a, b = np.array([1]), np.array([2])
    assert hash_arrays([{"a": a, "b": b}]) == hash_arrays([{"b": b, "a": a}])
    assert hash_arrays([{"a": a}, {"a": b}]) != hash_arrays([{"a": b}, {"a": a}])


def test_the_models_hash_sees_where_files_end(tmp_path):
    for name, content in (("a", b"12"), ("b", b"3"), ("c", b"1"), ("d", b"23")):
        (tmp_path / name).write_bytes(content)
    assert hash_files([tmp_path / "a", tmp_path / "b"]) != hash_files([tmp_path / "c", tmp_path / "d"])
