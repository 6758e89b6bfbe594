"""Lazily loaded models are those that onnx_ir loads, and what is no model is refused in one sentence."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.errors import JaxqError
from jaxq.files.load import load_lazily
from jaxq.files.model_file import data_files, hash_model, load_model
from tests.support import models
from tests.support.models import MODELS
from tests.support.running import graphs, save


def tensors(model: ir.Model) -> dict[tuple[int, str], ir.TensorProtocol]:
    """All initializers, by graph and name."""
    found = {}
    for i, graph in enumerate(model.graphs()):
        for name, v in graph.initializers.items():
            assert v.const_value is not None
            found[i, name] = v.const_value
    return found


def without_weights(model: ir.Model) -> bytes:
    """Everything but the initializers, those of subgraphs too."""
    proto = ir.to_proto(model)
    for graph in graphs(proto.graph):
        del graph.initializer[:]
    return proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_what_onnx_ir_loads(name, external, tmp_path):
    path = save(MODELS[name](), tmp_path, external=external)
    lazy, eager = load_lazily(path), ir.load(path)
    assert without_weights(lazy) == without_weights(eager)
    found, expected = tensors(lazy), tensors(eager)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found[key].numpy(), tensor.numpy())


def test_large_weights_stay_in_the_file(tmp_path):
    found = tensors(load_lazily(save(models.attention(), tmp_path)))
    for (_, name), tensor in found.items():
        assert isinstance(tensor, ir.ExternalTensor) == (name in [*"qkvo", "lm_head"]), name


def test_weights_that_are_not_raw_bytes_are_loaded(tmp_path):
    """onnx.helper writes numbers one by one where it is told to."""
    model = models.mlp()
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).ravel().tolist()
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values))
    path = save(model, tmp_path)
    for key, tensor in tensors(ir.load(path)).items():
        np.testing.assert_array_equal(tensors(load_lazily(path))[key].numpy(), tensor.numpy())


def test_external_data_may_lie_in_a_folder_and_in_several_files(tmp_path):
    model = models.mlp()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    model = load_model(tmp_path / "m.onnx")
    assert data_files(tmp_path / "m.onnx", model) == [tmp_path / "down", tmp_path / "up"]


def test_the_hash_is_that_of_the_content(tmp_path):
    paths = [save(models.mlp(), tmp_path / name, f"{name}.onnx") for name in ("a", "b")]
    paths.append(save(models.mlp(), tmp_path / "c", external=True))
    hashes = [hash_model(path, load_model(path)) for path in paths]
    assert hashes[0] == hashes[1] != hashes[2]


NO_MODELS = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"this is not a model, it is a sentence.\n" * 20,
    "json": json.dumps({"model": [1, 2, 3], "layers": {"a": 1.5}}).encode(),
    "noise": np.random.default_rng(0).bytes(5000),
    "zip": b"PK\x03\x04" + bytes(60),
    "endless number": b"\xff" * 30,
    "length beyond the end": b"\x3a\xff\xff\xff\xff\x0f",
    "a model without a graph": b"\x08\x08",
    "a graph without nodes": onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])).SerializeToString(),
}


@pytest.mark.parametrize("content", NO_MODELS.values(), ids=NO_MODELS)
def test_what_is_no_model_is_refused(content, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(JaxqError, match=r"model file '.*x\.onnx' is not an ONNX model"):
        load_model(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(JaxqError, match=r"none\.onnx' does not exist"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(JaxqError, match="is a folder: give the path"):
        load_model(tmp_path)


def test_missing_external_data_is_named(tmp_path):
    path = save(models.mlp(), tmp_path, external=True)
    (tmp_path / "model.onnx.weights").unlink()
    with pytest.raises(JaxqError, match=r"stores weights in '.*model\.onnx\.weights', which does not exist"):
        load_model(path)


@pytest.mark.parametrize("linked", [("model.onnx",), ("weights",), ("model.onnx", "weights")], ids="+".join)
@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_files_may_be_links(linked, link, external, tmp_path, monkeypatch):
    """As in the cache of the Hugging Face hub: links to blobs, whose names are others."""
    path = save(models.attention(), tmp_path / "snapshot", external=external)
    expected = {key: tensor.numpy().copy() for key, tensor in tensors(ir.load(path)).items()}
    (tmp_path / "blobs").mkdir()
    for i, file in enumerate(sorted(path.parent.iterdir())):
        if file.name in linked or (file != path and "weights" in linked):
            blob = file.replace(tmp_path / "blobs" / f"{i}f3a")
            link(os.path.relpath(blob, file.parent) if link is os.symlink else blob, file)
    monkeypatch.chdir(tmp_path)
    for given in (path, Path("snapshot/model.onnx")):
        model = load_model(given)
        for key, tensor in tensors(model).items():
            np.testing.assert_array_equal(tensor.numpy(), expected[key])
        assert data_files(given, model) == [given.with_name("model.onnx.weights")] * external


@pytest.mark.parametrize("location", ["../secret", "a/../../secret", "/etc/secret"])
def test_a_model_names_no_data_outside_its_folder(location, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    path = save(models.mlp(), tmp_path / "m", external=True)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(JaxqError, match=rf"m/model\.onnx' stores weights in '{location}', outside its folder"):
        load_model(path)


def load_or_refuse(path: Path, content: bytes, what: str) -> bool:
    """Whether the content loads; anything but a JaxqError is a failure."""
    path.write_bytes(content)
    try:
        load_model(path)
    except JaxqError:
        return False
    except BaseException as error:
        raise AssertionError(f"{what}: {error!r}") from error
    return True


@pytest.mark.parametrize("name", ["attention", "conditional", "listed"])
def test_files_that_are_cut_off_are_refused(name, tmp_path):
    content = MODELS[name]().SerializeToString()
    rng = np.random.default_rng(0)
    stops = {*range(1, 40), *(len(content) - i for i in range(1, 200)), *rng.integers(len(content), size=60).tolist()}
    for stop in stops:
        load_or_refuse(tmp_path / "x.onnx", content[:stop], f"the first {stop} bytes")
    assert load_or_refuse(tmp_path / "x.onnx", content, "all")
    # Inside the graph, where all weights are, a cut cannot go unseen.
    assert not any(
        load_or_refuse(tmp_path / "x.onnx", content[:n], f"{n}") for n in range(100, len(content) - 100, 5000)
    )


@pytest.mark.parametrize("name", ["attention", "conditional", "half"])
def test_files_with_flipped_bits_load_or_are_refused(name, tmp_path):
    content = MODELS[name]().SerializeToString()
    rng = np.random.default_rng(1)
    places = list(range(len(content)))
    for tensor in MODELS[name]().graph.initializer:  # all but the numbers of large weights
        if (size := len(tensor.raw_data)) > 1000:
            start = content.find(tensor.raw_data)
            places = [i for i in places if not start + 4 < i < start + size - 4]
    for _ in range(150):
        spoiled = bytearray(content)
        flips = [(int(rng.choice(places)), int(rng.integers(1, 256))) for _ in range(rng.integers(1, 4))]
        for place, bits in flips:
            spoiled[place] ^= bits
        load_or_refuse(tmp_path / "x.onnx", bytes(spoiled), f"{name} with {flips}")
