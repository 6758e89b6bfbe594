"""From file to file: the source stays as it is, the target is whole or absent, and the same every time."""

import errno
import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.errors import JaxqError
from jaxq.files import model_file
from jaxq.formats.integers import IntegerFormat
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.models import HIDDEN, MODELS, build, node, tokens, weight
from tests.support.running import quantize, relative, run, save

X = {"x": tokens(4, 10, HIDDEN)}


def hashes(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
@pytest.mark.parametrize("external_above", [0, 1 << 30], ids=["to external data", "to one file"])
def test_weights_move_and_the_source_stays(external, external_above, tmp_path):
    source = save(models.swiglu(), tmp_path / "in", external=external)
    before = hashes(tmp_path / "in")
    target = tmp_path / "new" / "folder" / "out.onnx"
    outcome = quantize(source, target, exclude=("up",), external_above=external_above)
    assert hashes(tmp_path / "in") == before
    expected = ["out.onnx", "out.onnx.data"] if external_above == 0 else ["out.onnx"]
    assert sorted(hashes(target.parent)) == expected
    assert outcome.target_bytes == sum(p.stat().st_size for p in target.parent.iterdir())
    assert outcome.source_bytes == sum(p.stat().st_size for p in source.parent.iterdir())
    for path in (tmp_path / "in").iterdir():
        path.unlink()  # the target needs nothing of it
    onnx.checker.check_model(str(target), full_check=True)
    assert relative(run(target, X)[0], run(models.swiglu(), X)[0]) < 0.25


def test_two_runs_write_the_same_bytes(tmp_path):
    source = save(models.swiglu(), tmp_path / "in")
    for name in ("a", "b"):
        quantize(source, tmp_path / name / "out.onnx", "awq_lite", [Batch(X)], cache=tmp_path / f"cache {name}")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert len(hashes(tmp_path / "a")) == 1


def test_a_file_quantized_from_either_storage_is_the_same(tmp_path):
    targets = []
    for external in (False, True):
        source = save(models.swiglu(), tmp_path / f"{external}", external=external)
        targets.append(tmp_path / f"{external}.onnx")
        quantize(source, targets[-1])
    assert targets[0].read_bytes() == targets[1].read_bytes()


def test_a_run_over_an_old_target_replaces_it(tmp_path):
    source, target = save(models.mlp(), tmp_path / "in"), tmp_path / "out" / "out.onnx"
    target.parent.mkdir()
    target.write_text("old")
    quantize(source, target)
    onnx.checker.check_model(str(target), full_check=True)


def test_the_data_of_an_old_target_goes_with_it(tmp_path):
    source, target = save(models.mlp(), tmp_path / "in"), tmp_path / "out" / "out.onnx"
    quantize(source, target, external_above=0)
    outcome = quantize(source, target)
    assert outcome.target_bytes == target.stat().st_size
    assert sorted(hashes(target.parent)) == ["out.onnx"]


@pytest.mark.parametrize("alias", ["same", "dotted", "symlink"])
def test_the_source_is_refused_as_target(alias, tmp_path):
    source = save(models.mlp(), tmp_path)
    before = source.read_bytes()
    target = {"same": source, "dotted": tmp_path / "x" / ".." / "model.onnx", "symlink": tmp_path / "link.onnx"}[alias]
    if alias == "symlink":
        target.symlink_to(source)
    with pytest.raises(JaxqError, match="belongs to the source, which is never changed"):
        quantize(source, target)
    assert source.read_bytes() == before


@pytest.mark.parametrize("external_above", [0, 1 << 30], ids=["to external data", "to one file"])
@pytest.mark.parametrize("target", ["out.onnx", "out.onnx.data"])
def test_the_sources_data_is_never_overwritten(target, external_above, tmp_path):
    """A renamed model keeps its weights under the old name: that of the target's data."""
    source = save(models.mlp(), tmp_path, "out.onnx", external=True).rename(tmp_path / "in.onnx")
    data = (tmp_path / "out.onnx.weights").rename(tmp_path / "out.onnx.data")
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = data.name
    source.write_bytes(proto.SerializeToString())
    before = data.read_bytes()
    with pytest.raises(JaxqError, match=r"out\.onnx\.data' belongs to the source, which is never changed"):
        quantize(source, tmp_path / target, external_above=external_above)
    assert data.read_bytes() == before


def spoiled() -> onnx.ModelProto:
    w = weight(HIDDEN, HIDDEN)
    w[0, 0] = np.nan
    return build([node("MatMul", "x w", "y")], {"w": w}, {"y": models.ACTIVATION})


def test_nothing_is_written_for_a_weight_that_is_not_finite(tmp_path):
    source = save(spoiled(), tmp_path / "in")
    with pytest.raises(JaxqError, match="weight 'w' has 1 values that are NaN"):
        quantize(source, tmp_path / "out" / "out.onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("double", r"has no weight that can be quantized: its type is DOUBLE", id="double"),
        pytest.param("gemm_mixed", r"has no weight that can be quantized: shared by Gemm nodes", id="gemm_mixed"),
    ],
)
def test_a_model_without_weights_to_quantize_says_why(name, message, tmp_path):
    with pytest.raises(JaxqError, match=message):
        quantize(save(MODELS[name](), tmp_path / "in"), tmp_path / "out" / "out.onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES], ids=["disk full", "denied"])
def test_nothing_is_left_of_a_target_that_cannot_be_written(code, monkeypatch, tmp_path):
    source, target = save(models.mlp(), tmp_path / "in"), tmp_path / "out" / "out.onnx"

    def fail(model: ir.Model, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(code, "no luck")

    monkeypatch.setattr(model_file, "save_lazily", fail)
    with pytest.raises(JaxqError, match=r"cannot write .*out\.onnx.*: no luck"):
        quantize(source, target)
    assert list(target.parent.iterdir()) == []


def test_an_old_target_survives_a_failure(monkeypatch, tmp_path):
    source, target = save(models.mlp(), tmp_path / "in"), tmp_path / "out.onnx"
    target.write_text("old")
    monkeypatch.setattr(model_file, "save_lazily", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(JaxqError, match="full"):
        quantize(source, target)
    assert target.read_text() == "old"
    assert not list(tmp_path.glob(".jaxq-*"))


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    source = save(models.mlp(), tmp_path / "in")
    (tmp_path / "file").write_text("")
    with pytest.raises(JaxqError, match=r"cannot write to .*file"):
        quantize(source, tmp_path / "file" / "out.onnx", cache=tmp_path / "cache")


@pytest.mark.parametrize(
    "external_above",
    [pytest.param(0, id="external data"), pytest.param(1 << 30, id="one file")],
)
def test_a_disk_that_fills_up_leaves_nothing(external_above, tmp_path):
    resource = pytest.importorskip("resource", reason="needs a limit on file sizes")
    source, target = save(models.attention(), tmp_path / "in"), tmp_path / "out" / "out.onnx"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        with pytest.raises(JaxqError) as caught:
            quantize(source, target, external_above=external_above)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(target.parent.iterdir()) == []
    assert str(caught.value).startswith(f"cannot write {str(target)!r}")


def test_a_data_file_that_is_cut_off_is_refused(tmp_path):
    source = save(models.mlp(), tmp_path / "in", external=True)
    data = source.with_name("model.onnx.weights")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(JaxqError, match=r"model\.onnx' stores weights in '.*model\.onnx\.weights', which is cut off"):
        quantize(source, tmp_path / "out" / "out.onnx")


def test_the_outcome_tells_what_became_of_every_weight(tmp_path):
    source = save(models.swiglu(), tmp_path)
    batches = [Batch(X)]
    outcome = quantize(source, tmp_path / "out.onnx", "awq_lite", batches, exclude=("up", "nothing"))
    assert [(x.name, x.nodes, x.activation) for x in outcome.layers] == [
        ("gate", ("/g/MatMul",), "x"),
        ("down", ("/y/MatMul",), "product"),
    ]
    assert [d.name for d in outcome.skipped] == ["up"]
    assert outcome.unmatched == ("nothing",)
    assert (outcome.tokens, outcome.moments_from_cache) == (40, 0)
    assert outcome.quantized_source_bytes == sum(4 * x.c_in * x.c_out for x in outcome.layers)
    assert outcome.weight_bytes == outcome.quantized_source_bytes + 4 * HIDDEN * models.FFN
    assert outcome.bits_per_weight == pytest.approx(4 + 32 / 32)
    assert all(x.loss is not None and x.loss_rtn is not None and x.loss <= x.loss_rtn for x in outcome.layers)
    assert [p.name for p in outcome.phases] == ["load", "calibrate", "search", "write"]


def test_a_weight_times_a_constant_is_left_alone(tmp_path):
    source = save(models.constant_activation(), tmp_path)
    outcome = quantize(source, tmp_path / "out.onnx", "awq_lite", [Batch(X)], IntegerFormat(32, num_bits=8))
    assert [layer.name for layer in outcome.layers] == ["v"]
    assert relative(run(tmp_path / "out.onnx", X)[0], run(source, X)[0]) < 0.02
