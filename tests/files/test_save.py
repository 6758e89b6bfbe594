"""Files written tensor by tensor are those that protobuf writes, and no two large tensors are in memory together."""

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.files.load import load_lazily
from jaxq.files.save import save_lazily
from tests.support import models
from tests.support.models import MODELS
from tests.support.running import run, save

MEGABYTE = 1 << 20


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_the_models_protobuf(name, tmp_path):
    model = ir.from_proto(MODELS[name]())
    save_lazily(model, tmp_path / "lazy.onnx")
    assert onnx.load(tmp_path / "lazy.onnx") == ir.to_proto(model)


def test_weights_move_from_another_file(tmp_path):
    source = save(models.attention(), tmp_path, external=True)
    save_lazily(load_lazily(source), tmp_path / "lazy.onnx")
    source.with_name("model.onnx.weights").unlink()
    feeds = {"x": models.tokens(1, 3, models.HIDDEN)}
    for got, expected in zip(run(tmp_path / "lazy.onnx", feeds), run(models.attention(), feeds), strict=True):
        np.testing.assert_array_equal(got, expected)


def kinds_of_tensors() -> list[ir.TensorProtocol]:
    random = np.random.default_rng(0)
    bytes_ = random.integers(256, size=1501, dtype=np.uint8)
    floats = random.normal(size=(40, 40)).astype(np.float32)
    halves: Any = floats.astype(ml_dtypes.bfloat16)
    bytes_of_floats: Any = floats.astype(ml_dtypes.float8_e4m3fn)
    return [
        ir.PackedTensor(bytes_, ir.DataType.INT4, shape=ir.Shape((3001,)), name="int4"),
        ir.Tensor(halves, name="bfloat16", doc_string="a note"),
        ir.Tensor(bytes_of_floats, name="float8", metadata_props={"key": "value"}),
        ir.LazyTensor(lambda: ir.Tensor(floats), ir.DataType.FLOAT, ir.Shape((40, 40)), name="lazy"),
        ir.Tensor(np.array(1.0), name="small"),
        ir.StringTensor([b"text" * 1000], shape=ir.Shape((1,)), name="string"),
    ]


def model_with(tensors: list[ir.TensorProtocol]) -> ir.Model:
    values = [ir.Value(name=tensor.name, const_value=tensor) for tensor in tensors]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 21}, name="tensors")
    return ir.Model(graph, ir_version=10)


def test_every_kind_of_tensor(tmp_path):
    model = model_with(kinds_of_tensors())
    before = [value.const_value for value in model.graph.initializers.values()]
    save_lazily(model, tmp_path / "lazy.onnx")
    assert onnx.load(tmp_path / "lazy.onnx") == ir.to_proto(model)
    assert [value.const_value for value in model.graph.initializers.values()] == before


def test_memory_holds_one_large_tensor(tmp_path):
    def tensor(i: int) -> ir.TensorProtocol:
        return ir.LazyTensor(
            lambda: ir.Tensor(np.full(MEGABYTE, i, np.uint8)), ir.DataType.UINT8, ir.Shape((MEGABYTE,)), name=f"t{i}"
        )

    model = model_with([tensor(i) for i in range(32)])
    tracemalloc.start()
    save_lazily(model, tmp_path / "lazy.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MEGABYTE
    found = onnx.load(tmp_path / "lazy.onnx").graph.initializer
    assert [t.raw_data for t in found] == [bytes([i]) * MEGABYTE for i in range(32)]


def test_a_tensor_of_another_length_is_refused(tmp_path):
    wrong = ir.LazyTensor(lambda: ir.Tensor(np.zeros(2000)), ir.DataType.FLOAT, ir.Shape((2000,)), name="wrong")
    with pytest.raises(AssertionError, match="'wrong' is not as long as it says"):
        save_lazily(model_with([wrong]), tmp_path / "lazy.onnx")
