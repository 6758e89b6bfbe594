"""jaxq.int4.quantize: methods, readers, exclusions and options, on models in memory and on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader

from jaxq.errors import JaxqError
from jaxq.int4 import quantize
from tests.support import models
from tests.support.int4_quantize import DATA, attention, dtypes, operators
from tests.support.models import HIDDEN, MODELS, build, node, tokens, value, weight
from tests.support.running import initializers, relative, run, save

METHODS = [f"{name}{end}" for name in ("rtn", "rtn_dq", "awq_lite", "awq_clip", "awq_full") for end in ("", "_trt")]


class Reader(CalibrationDataReader):
    """onnxruntime's own kind of calibration data."""

    def __init__(self) -> None:
        self.rest = iter(DATA)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


class OnlyGetNext:
    def __init__(self) -> None:
        self.rest = iter(DATA)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    source = attention()
    before = source.SerializeToString()
    got = quantize(source, method, DATA, block_size=16)
    assert source.SerializeToString() == before
    onnx.checker.check_model(got, full_check=True)
    trt = method.endswith("_trt")
    float_weights = method.startswith("rtn") and "dq" not in method
    prefix = "TRT_INT4" if trt else ""
    assert f"{prefix}DequantizeLinear" in operators(got)
    assert (f"{prefix}QuantizeLinear" in operators(got)) == float_weights
    assert set(dtypes(got).values()) == (set() if float_weights else {onnx.TensorProto.INT4})
    assert "lm_head" in initializers(got)  # excluded, so still float
    scales = [a for name, a in initializers(got).items() if name.endswith("_scale")]
    assert len(scales) == 4
    assert all((s > 0).all() for s in scales)
    if not trt:
        assert relative(run(got, DATA[0])[0], run(source, DATA[0])[0]) < 0.2


READERS: dict[str, Callable[[], Any]] = {
    "list": lambda: DATA,
    "iterator": lambda: iter(DATA),
    "onnxruntime's": Reader,
    "get_next alone": OnlyGetNext,
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_of_every_kind_give_the_same(reader):
    got = quantize(attention(), "awq_lite", READERS[reader](), block_size=16)
    assert got == quantize(attention(), "awq_lite", DATA, block_size=16)


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_and_a_model_in_memory_give_the_same(kind, external, tmp_path):
    path = save(attention(), tmp_path, external=external)
    got = quantize(kind(path), "awq_full", DATA, block_size=32)
    assert initializers(got).keys() == initializers(quantize(attention(), "awq_full", DATA, block_size=32)).keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", *["model.onnx.weights"] * external]
    for tensor in got.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT


def test_the_defaults_are_those_of_the_page():
    """Method awq_clip, blocks of 128, symmetric."""
    got = quantize(attention(), calibration_data_reader=DATA)
    (scale,) = [a for name, a in initializers(got).items() if name == "q_scale"]
    assert scale.shape == (1, HIDDEN)
    assert set(dtypes(got)) == set("qkvo")
    assert "Mul" not in operators(got)


def test_zero_points_and_per_channel():
    got = quantize(attention(), "awq_lite", DATA, use_zero_point=True, block_size=-1)
    assert set(dtypes(got).values()) == {onnx.TensorProto.UINT4}
    assert initializers(got)["q_zero_point"].shape == (HIDDEN,)


@pytest.mark.parametrize(
    ("patterns", "skipped"),
    [
        pytest.param(None, set(), id="none"),
        pytest.param([], set(), id="empty"),
        pytest.param(["/lm_head"], {"lm_head"}, id="the default"),
        pytest.param([r"/[qk]_out/MatMul$", "/nothing"], {"q", "k"}, id="regular expression"),
        pytest.param(["MatMul"], set(), id="names begin with it"),
        pytest.param("/lm_head", {"lm_head"}, id="one string"),
    ],
)
def test_nodes_to_exclude(patterns, skipped):
    got = quantize(attention(), "rtn_dq", nodes_to_exclude=patterns)
    assert set(dtypes(got)) == {*"qkvo", "lm_head"} - skipped


@pytest.mark.parametrize(
    ("given", "eight"),
    [
        pytest.param({"layers_8bit": "v_out"}, {"v"}, id="a name"),
        pytest.param({"layers_8bit": "/v_out/MatMul, /q_out"}, {"v", "q"}, id="names apart by commas"),
        pytest.param({"layers_8bit": ["o_out"]}, {"o"}, id="a list"),
        pytest.param({"precision_info": {"k": 8, "q": 4, "lm_head": 8}}, {"k"}, id="bits by weight"),
        pytest.param({"precision_info": {"k": {"precision": 8, "block_size": -1, "axis": 0}}}, {"k"}, id="a record"),
    ],
)
@pytest.mark.parametrize("zero_points", [False, True])
def test_some_layers_in_8_bits(given, eight, zero_points):
    got = quantize(attention(), "awq_lite", DATA, use_zero_point=zero_points, block_size=16, **given)
    wide, narrow = (
        (onnx.TensorProto.UINT8, onnx.TensorProto.UINT4)
        if zero_points
        else (onnx.TensorProto.INT8, onnx.TensorProto.INT4)
    )
    assert dtypes(got) == {name: wide if name in eight else narrow for name in "qkvo"}
    scales = {name: initializers(got)[f"{name}_scale"].ndim for name in "qkvo"}
    assert scales == {name: 1 if name in eight else 2 for name in "qkvo"}
    assert relative(run(got, DATA[0])[0], run(attention(), DATA[0])[0]) < 0.2


def test_the_block_size_of_a_record():
    info = {"q": {"precision": 8, "block_size": 32}, "k": {"precision": 4, "block_size": -1}}
    got = quantize(attention(), "rtn_dq", block_size=16, precision_info=info)
    shapes = {name: initializers(got)[f"{name}_scale"].shape for name in "qkv"}
    assert shapes == {"q": (HIDDEN // 32, HIDDEN), "k": (HIDDEN,), "v": (HIDDEN // 16, HIDDEN)}
    assert dtypes(got)["q"] == onnx.TensorProto.INT8 and dtypes(got)["k"] == onnx.TensorProto.INT4


def test_column_major_and_tables():
    got = quantize(MODELS["embedding"](), "rtn_dq", block_size=16, use_column_major=True)
    assert "Transpose" in operators(got)
    nodes = [node("Gather", "table ids", "e"), node("MatMul", "e w", "y")]
    weights = {"table": weight(32, HIDDEN), "w": weight(HIDDEN, HIDDEN)}
    proto = build(nodes, weights, {"y": ("b", "s", HIDDEN)}, [value("ids", ("b", "s"), onnx.TensorProto.INT64)])
    ids = {"ids": np.arange(12).reshape(2, 6)}
    for axis, shape in ((0, (2, HIDDEN)), (1, (32, 4)), (-1, (32, 4))):
        got = quantize(proto, "rtn_dq", gather_quantize_axis=axis, gather_block_size=16)
        assert initializers(got)["table_scale"].shape == shape
        assert relative(run(got, ids)[0], run(proto, ids)[0]) < 0.2


def test_options_reach_the_search():
    """A grid with nothing but no scaling, 0 and 1; ratios from 0.95 on."""
    coarse = quantize(attention(), "awq_lite", DATA, block_size=16, awqlite_alpha_step=1.0)
    assert coarse != quantize(attention(), "awq_lite", DATA, block_size=16)
    narrow = quantize(attention(), "awq_clip", DATA, block_size=16, awqclip_alpha_min=0.95, awqclip_bsz_col=8)
    plain = initializers(quantize(attention(), "rtn_dq", block_size=16))["q_scale"]
    ratio = initializers(narrow)["q_scale"] / plain
    assert ratio.min() > 0.949
    wide = quantize(attention(), "awq_clip", DATA, block_size=16, awqclip_alpha_step=0.5)
    ratio = np.unique((initializers(wide)["q_scale"] / plain).round(5))
    assert set(ratio.tolist()) <= {0.5, 1.0}


def with_kernels(stacks: bool = False) -> onnx.ModelProto:
    """Convolutions, one of them unnamed, a matrix, and a stack of matrices."""
    nodes = [node("Conv", "x kernel", "h", pads=[1, 1]), node("Conv", "h point", "i"), node("MatMul", "i w", "y")]
    nodes[1].name = ""
    nodes += [node("MatMul", "y stack", "z")] if stacks else []
    weights = {"kernel": weight(24, HIDDEN, 3), "point": weight(24, 24, 1), "w": weight(16, 32)}
    weights |= {"stack": weight(2, 32, 8)} if stacks else {}
    last = "z" if stacks else "y"
    return build(nodes, weights, {last: (2, 24, 8 if stacks else 32)}, [value("x", (2, HIDDEN, 16))])


@pytest.mark.parametrize("method", ["rtn", "rtn_dq", "awq_lite", "awq_full", "rtn_dq_trt"])
def test_kernels_of_conv_are_skipped(method):
    source = with_kernels()
    data = [{"x": tokens(2, HIDDEN, 16)}]
    got = quantize(source, method, data, block_size=16)
    after, before = initializers(got), initializers(source)
    for name in ("kernel", "point"):
        np.testing.assert_array_equal(after[name], before[name])
    (dequantize,) = [n for n in got.graph.node if n.op_type.endswith("DequantizeLinear")]
    assert {n.op_type for n in got.graph.node if dequantize.output[0] in n.input} == {"MatMul"}
    if "trt" not in method:
        assert 0.001 < relative(run(got, data[0])[0], run(source, data[0])[0]) < 0.2


def test_stacks_are_quantized_beside_kernels():
    got = quantize(with_kernels(stacks=True), "rtn_dq", block_size=16)
    assert set(dtypes(got)) == {"w", "stack"}


def test_a_model_of_kernels_alone_has_nothing_to_quantize():
    source = models.convolution()
    with pytest.raises(JaxqError, match="no weight that can be quantized: a kernel of Conv"):
        quantize(source, "rtn_dq")
