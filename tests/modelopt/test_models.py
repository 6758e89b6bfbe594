"""jaxq.modelopt.quantize: ModelOpt's entry points on models in memory and on disk."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader

from jaxq.errors import JaxqError
from jaxq.modelopt.quantize import quantize, quantize_rtn
from tests.support import models
from tests.support.models import HIDDEN, MODELS, build, node, tokens, value, weight
from tests.support.running import initializers, relative, run, save

DATA = [{"x": tokens(2, 8, HIDDEN, seed=i)} for i in range(3)]
METHODS = [f"{name}{end}" for name in ("rtn", "rtn_dq", "awq_lite", "awq_clip", "awq_full") for end in ("", "_trt")]


def attention() -> onnx.ModelProto:
    """Attention with a last layer of the name that is excluded by default."""
    model = models.attention()
    model.graph.node[-1].name = "/lm_head/MatMul"
    return model


def operators(model: onnx.ModelProto) -> set[str]:
    return {each.op_type for each in model.graph.node}


def dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Types of the codes by the weight's name."""
    end = "_quantized"
    return {t.name.removesuffix(end): t.data_type for t in model.graph.initializer if t.name.endswith(end)}


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


def test_the_defaults_are_the_pages():
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
    ("patterns", "left"),
    [
        pytest.param(None, set(), id="none"),
        pytest.param([], set(), id="empty"),
        pytest.param(["/lm_head"], {"lm_head"}, id="the default"),
        pytest.param([r"/[qk]_out/MatMul$", "/nothing"], {"q", "k"}, id="regular expression"),
        pytest.param(["MatMul"], set(), id="names begin with it"),
        pytest.param("/lm_head", {"lm_head"}, id="one string"),
    ],
)
def test_nodes_to_exclude(patterns, left):
    got = quantize(attention(), "rtn_dq", nodes_to_exclude=patterns)
    assert set(dtypes(got)) == {*"qkvo", "lm_head"} - left


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


def test_knobs_reach_the_search():
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


def bad(*arguments: Any, **named: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: quantize(*arguments, **named)


def nothing() -> Iterator[dict[str, np.ndarray]]:
    yield from ()


X = DATA[0]["x"]
REFUSED = {
    "method": (bad(attention(), "awq"), "calibration_method is 'awq': choose one of rtn, rtn_dq, "),
    "parameter": (bad(attention(), "rtn", awq_alpha=1), "quantize has no parameter 'awq_alpha': it takes awqlite_"),
    "no data": (bad(attention()), "'awq_clip' needs calibration data: give calibration_data_reader="),
    "empty data": (bad(attention(), "awq_lite", nothing()), "calibration_data_reader gives nothing"),
    "no reader": (bad(attention(), "awq_lite", 3), "calibration_data_reader is of type int: give an iterable"),
    "no dictionary": (bad(attention(), "awq_lite", [X]), "item 0 of calibration_data_reader is of type ndarray"),
    "missing input": (bad(attention(), "awq_lite", [{}]), "the model's inputs are x, and the data has none for x"),
    "unknown input": (bad(attention(), "awq_lite", [{"x": X, "z": X}]), "the data has z, and the model's inputs are x"),
    "shape": (bad(attention(), "awq_lite", [{"x": X[0]}]), "needs 3 dimensions"),
    "block size": (bad(attention(), "rtn_dq", block_size=48), "block_size is 48"),
    "columns": (bad(attention(), "rtn_dq", awqclip_bsz_col=0), "awqclip_bsz_col is 0"),
    "alpha step": (bad(attention(), "awq_lite", DATA, awqlite_alpha_step=2), "alpha_step is 2"),
    "no number": (bad(attention(), "awq_lite", DATA, awqclip_alpha_min="a"), "awqclip_alpha_min is 'a': give a number"),
    "table axis": (bad(attention(), "rtn_dq", gather_quantize_axis=5), "gather_quantize_axis is 5"),
    "no table axis": (bad(attention(), "rtn_dq", gather_quantize_axis="x"), "gather_quantize_axis is 'x'"),
    "column-major rtn": (bad(attention(), "rtn", use_column_major=True), "use_column_major goes with rtn_dq"),
    "zero points in TensorRT": (bad(attention(), "rtn_dq_trt", use_zero_point=True), "'trt' does not support uint4"),
    "layers": (bad(attention(), "rtn_dq", layers_8bit="z"), "layers_8bit is 'z': no node has such a name"),
    "expression": (bad(attention(), "rtn_dq", nodes_to_exclude=["("]), "'(', which is no regular expression"),
    "provider": (bad(attention(), "awq_lite", DATA, ["npu"]), "calibration_eps has 'npu': choose from cpu"),
    "provider of rtn": (bad(attention(), "rtn", None, ["gpu"]), "calibration_eps has 'gpu': choose from cpu"),
    "onnxruntime's name": (bad(attention(), "rtn_dq", None, ["CPUExecutionProvider"]), "has 'CPUExecutionProvider'"),
    "no providers": (bad(attention(), "rtn_dq", calibration_eps=None), "calibration_eps is None: give a list"),
    "empty providers": (bad(attention(), "rtn_dq", calibration_eps=[]), "calibration_eps is empty"),
    "node": (bad(attention(), "rtn_dq", nodes_to_exclude=[3]), "nodes_to_exclude has 3: give strings"),
    "nodes": (bad(attention(), "rtn_dq", nodes_to_exclude=3), "nodes_to_exclude is 3: give a list of strings"),
    "no layers": (bad(attention(), "rtn_dq", layers_8bit=3), "layers_8bit is 3: give a list of strings"),
    "block size as text": (bad(attention(), "rtn_dq", block_size="128"), "block_size is '128': give an integer"),
    "item": (bad(attention(), "awq_lite", [*DATA, {"x": X * np.nan}]), "item 3 of calibration_data_reader: the data"),
    "ragged": (bad(attention(), "awq_lite", [{"x": [[1.0], [1.0, 2.0]]}]), "input 'x' is no array"),
    "nothing left": (bad(attention(), "rtn_dq", nodes_to_exclude=[""]), "the model given has no weight that can be"),
    "path": (bad("nowhere.onnx", "rtn_dq"), "model file 'nowhere.onnx' does not exist"),
    "no model": (bad(3, "rtn_dq"), "onnx_path is of type int"),
    "bits": (bad(attention(), "rtn_dq", precision_info={"q": 16}), "precision_info['q'] is 16: num_bits is 16"),
    "text for bits": (
        bad(attention(), "rtn_dq", precision_info={"q": "8"}),
        "precision_info['q'] is '8': give a number",
    ),
    "bits in a list": (
        bad(attention(), "rtn_dq", precision_info={"q": [8]}),
        "precision_info['q'] is [8]: give a number",
    ),
    "a list of bits": (bad(attention(), "rtn_dq", precision_info=[8]), "precision_info is [8]: give a dictionary"),
    "unknown weight": (
        bad(attention(), "rtn_dq", precision_info={"q": 8, "z": 8}),
        "precision_info names 'z': the model",
    ),
    "axis of a weight": (bad(attention(), "rtn_dq", precision_info={"q": {"precision": 8, "axis": 1}}), "the axis 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named(case):
    call, sentence = REFUSED[case]
    with pytest.raises(JaxqError) as error:
        call()
    assert sentence in str(error.value)
    for word in ("npz", "mend the file", "source.onnx", "gather.axis"):  # of files and configurations
        assert word not in str(error.value)


def test_a_model_without_its_external_data_is_refused(tmp_path):
    model = onnx.load(save(attention(), tmp_path, external=True), load_external_data=False)
    with pytest.raises(JaxqError, match="is stored in a file beside the model, and a ModelProto has no path to it"):
        quantize(model, "rtn_dq")


@pytest.mark.parametrize("dq_only", [False, True])
@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16])
def test_quantize_rtn(kind, dq_only):
    dtype = np.float32 if kind == onnx.TensorProto.FLOAT else np.float16
    source = models.typed(dtype, kind)
    got = quantize_rtn(source, kind, 32, dq_only)
    s = initializers(got)["w_scale"]
    assert s.dtype == dtype
    w = initializers(source)["w"].astype(np.float32)
    np.testing.assert_allclose(s, abs(w).reshape(2, 32, -1).max(axis=1) / 7, rtol=1e-3)
    assert ("QuantizeLinear" in operators(got)) != dq_only
    x = {"x": DATA[0]["x"].astype(dtype)}
    assert relative(run(got, x)[0], run(source, x)[0]) < 0.2


def test_quantize_rtn_looks_at_weights_alone():
    """A float32 constant of two dimensions beside float16 weights."""
    source = models.typed(np.float16, onnx.TensorProto.FLOAT16)
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), "constant"))
    source.graph.node.append(node("Abs", "constant", "unused"))
    got = quantize_rtn(source, onnx.TensorProto.FLOAT16, 32, dq_only=True)
    assert initializers(got)["w_scale"].dtype == np.float16


def test_quantize_rtn_refuses_what_is_no_model_or_type():
    wrong: Any = "model.onnx"
    with pytest.raises(JaxqError, match=r"onnx_model is of type str: give an onnx.ModelProto"):
        quantize_rtn(wrong, onnx.TensorProto.FLOAT, 32)
    for kind in ("FLOAT", None, [1], onnx.TensorProto.INT4):
        wrong = kind
        with pytest.raises(JaxqError, match=r"gemm_io_type is .*: give onnx.TensorProto.FLOAT or"):
            quantize_rtn(models.mlp(), wrong, 32)


def test_quantize_rtn_refuses_another_type():
    with pytest.raises(JaxqError, match="gemm_io_type is FLOAT16, and the model's weights have type FLOAT"):
        quantize_rtn(models.mlp(), onnx.TensorProto.FLOAT16, 32)


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
def test_kernels_of_conv_are_left_alone(method):
    source = with_kernels()
    data = [{"x": tokens(2, HIDDEN, 16)}]
    got = quantize(source, method, data, block_size=16)
    kept, before = initializers(got), initializers(source)
    for name in ("kernel", "point"):
        np.testing.assert_array_equal(kept[name], before[name])
    (dequantize,) = [n for n in got.graph.node if n.op_type.endswith("DequantizeLinear")]
    assert {n.op_type for n in got.graph.node if dequantize.output[0] in n.input} == {"MatMul"}
    if "trt" not in method:
        assert 0.001 < relative(run(got, data[0])[0], run(source, data[0])[0]) < 0.2


def test_stacks_are_quantized_beside_kernels():
    got = quantize(with_kernels(stacks=True), "rtn_dq", block_size=16)
    assert set(dtypes(got)) == {"w", "stack"}


def test_quantize_rtn_leaves_kernels_alone_whatever_their_type():
    """A kernel in float16 says nothing of ``gemm_io_type``."""
    half = onnx.TensorProto.FLOAT16
    nodes = [node("Conv", "a kernel", "b"), node("Cast", "b", "c", to=1), node("MatMul", "c w", "y")]
    weights = {"kernel": weight(24, HIDDEN, 1, dtype=np.float16), "w": weight(16, 32)}
    source = build(nodes, weights, {"y": (2, 24, 32)}, [value("a", (2, HIDDEN, 16), half)])
    got = quantize_rtn(source, onnx.TensorProto.FLOAT, 16, dq_only=True)
    assert set(dtypes(got)) == {"w"}
    np.testing.assert_array_equal(initializers(got)["kernel"], weights["kernel"])


def test_a_model_of_kernels_alone_has_nothing_to_quantize():
    source = models.convolution()
    with pytest.raises(JaxqError, match="no weight that can be quantized: a kernel of Conv: these are skipped here"):
        quantize(source, "rtn_dq")
