"""Quantized files are valid, run, and give what the weights that their own bytes stand for give."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from jaxq.capture import Batch
from jaxq.errors import JaxqError
from jaxq.integer import IntegerFormat
from tests.graph import models
from tests.graph.models import FFN, HIDDEN, MODELS, build, node, tokens, vector, weight
from tests.graph.running import initializers, quantize, relative, run, save, with_weights
from tests.graph.unpacked import dequantized

OLD = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 27)  # fuses no Gemm
BLOCK_SIZES = (16, 32, 64, 128, 256, -1)
NAMES = ("plain", "straight", "shared", "table", "crosswise", "bare")


def every_reader(dtype: type = np.float32) -> onnx.ModelProto:
    """Each kind of node that can read a weight, c_in = 96: whole blocks of 16 and 32, ragged ones of 64 and above."""
    nodes = [
        node("MatMul", "x plain", "a"),
        node("Gemm", "x straight bias", "b"),
        node("Gemm", "x crosswise bias", "c", transB=1),
        node("Gemm", "x bare", "d", transB=1),
        node("MatMul", "x shared", "e"),
        node("Neg", "x", "negative"),
        node("MatMul", "negative shared", "f"),
        node("Gemm", "x table", "g"),
        node("Gemm", "negative table", "h", transB=0),
        node("Concat", "a b c e f g h", "y", axis=-1),
    ]
    weights = {name: weight(FFN, 32, seed=i, dtype=dtype) for i, name in enumerate(NAMES)}
    weights |= {name: np.ascontiguousarray(weights[name].T) for name in ("crosswise", "bare")}
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outputs = {"y": ("n", 7 * 32), "d": ("n", 32)}
    x = models.value("x", ("n", FFN), kind)
    return build(nodes, weights | {"bias": vector(32).astype(dtype)}, outputs, [x], dtype=kind)


def in_place(source: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The float model with these weights [c_in, c_out], turned where it holds them turned."""
    old = initializers(source)
    return with_weights(source, {n: w if w.shape == old[n].shape else w.T for n, w in weights.items()})


FORMATS = [
    *[pytest.param("dq", IntegerFormat(block), np.float32, id=f"int4 {block}") for block in BLOCK_SIZES],
    *[pytest.param("dq", IntegerFormat(b, use_zero_point=True), np.float32, id=f"uint4 {b}") for b in (32, 128, -1)],
    *[pytest.param("dq", IntegerFormat(b, num_bits=8), np.float32, id=f"int8 {b}") for b in (64, -1)],
    pytest.param("dq", IntegerFormat(64, num_bits=8, use_zero_point=True), np.float32, id="uint8 64"),
    pytest.param("dq", IntegerFormat(32, num_bits=3), np.float32, id="3 bits"),
    pytest.param("dq", IntegerFormat(32, num_bits=5, use_zero_point=True), np.float32, id="5 bits"),
    pytest.param("dq", IntegerFormat(32), np.float16, id="half int4"),
    pytest.param("dq", IntegerFormat(-1, use_zero_point=True), np.float16, id="half uint4"),
    *[pytest.param("qdq", IntegerFormat(block), np.float32, id=f"qdq int4 {block}") for block in (64, -1)],
    pytest.param("qdq", IntegerFormat(32, use_zero_point=True), np.float32, id="qdq uint4"),
    pytest.param("qdq", IntegerFormat(32, num_bits=8), np.float32, id="qdq int8"),
    pytest.param("qdq", IntegerFormat(32), np.float16, id="qdq half"),
]


@pytest.mark.parametrize(("form", "fmt", "dtype"), FORMATS)
def test_a_file_gives_what_its_codes_stand_for(form, fmt, dtype, tmp_path):
    proto = every_reader(dtype)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, "rtn" if form == "qdq" else "rtn_dq", fmt=fmt, form=form)
    assert len(outcome.layers) == 6
    onnx.checker.check_model(str(target), full_check=True)
    written = onnx.load(target)
    weights = dequantized(written)
    assert set(weights) == set(NAMES)
    rows = 1 if fmt.block_size == -1 else -(-FFN // fmt.block_size)
    for name, w in weights.items():
        scale = initializers(written)[f"{name}_scale"]
        assert scale.shape == ((32,) if fmt.block_size == -1 else (rows, 32))
        assert scale.dtype == dtype
        assert relative(w, weight(FFN, 32, seed=NAMES.index(name))) < 4 * 2.0**-fmt.num_bits
    feeds = {"x": tokens(5, FFN).astype(dtype)}
    for got, expected in zip(run(target, feeds), run(in_place(proto, weights), feeds), strict=True):
        assert got.dtype == dtype
        assert relative(got, expected) < (1e-6 if dtype == np.float32 else 2e-3)


def fused(path: Path) -> dict[str, int]:
    """How often each operator stands in the model as onnxruntime runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = [f"{n.domain}:{n.op_type}" for n in onnx.load(options.optimized_model_filepath).graph.node]
    return {op: found.count(op) for op in set(found)}


@pytest.mark.parametrize("block_size", [b for b in BLOCK_SIZES if b > 0])
def test_onnxruntime_fuses_every_weight_that_one_node_reads(block_size, tmp_path):
    target = tmp_path / "out.onnx"
    fmt = IntegerFormat(block_size, use_zero_point=block_size in (32, 128))
    quantize(save(every_reader(), tmp_path), target, fmt=fmt)
    operators = fused(target)
    assert operators["com.microsoft:MatMulNBits"] == 4 - 3 * OLD
    assert operators.get(":DequantizeLinear", 0) == 4 + 3 * OLD  # those of the two shared weights


@pytest.mark.xfail(strict=True, reason="onnxruntime fuses no codes that two nodes read, even where each has its own DQ")
@pytest.mark.parametrize("same", [False, True], ids=["two activations", "one activation"])
def test_onnxruntime_fuses_shared_weights(same, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.shared(same), tmp_path), target)
    assert ":DequantizeLinear" not in fused(target)


@pytest.mark.parametrize("name", ["swiglu", "layer_norm", "attention"])
def test_scaled_weights_are_fused_too(name, tmp_path):
    target = tmp_path / "out.onnx"
    outcome = quantize(save(MODELS[name](), tmp_path), target, "awq_lite", [Batch({"x": tokens(4, 10, HIDDEN)})])
    operators = fused(target)
    assert operators["com.microsoft:MatMulNBits"] == len(outcome.layers)
    assert ":DequantizeLinear" not in operators


CONVERTED = pytest.mark.xfail(strict=True, reason="below opset 18 the converter replaces the nodes that sites hold")


@pytest.mark.parametrize(
    ("opset", "ir_version", "expected"),
    [
        pytest.param(13, 7, (21, 10), id="13", marks=CONVERTED),
        pytest.param(17, 8, (21, 10), id="17", marks=CONVERTED),
        pytest.param(18, 8, (21, 10), id="18"),
        pytest.param(20, 9, (21, 10), id="20"),
        pytest.param(21, 10, (21, 10), id="21"),
        pytest.param(21, 11, (21, 11), id="21 in a newer file format"),
        pytest.param(23, 11, (23, 11), id="23"),
    ],
)
def test_opsets_are_raised_and_never_lowered(opset, ir_version, expected, tmp_path):
    proto = models.mlp(opset, ir_version)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target)
    onnx.checker.check_model(str(target), full_check=True)
    written = onnx.load(target)
    assert (written.opset_import[0].version, written.ir_version) == expected
    assert not any(
        len(t.dims) == 2 and t.data_type == onnx.TensorProto.FLOAT and "scale" not in t.name
        for t in written.graph.initializer
    )
    x = {"x": tokens(2, 4, HIDDEN)}
    assert relative(run(target, x)[0], run(in_place(proto, dequantized(written)), x)[0]) < 1e-6


QUANTIZABLE = [name for name in MODELS if name not in ("gemm_mixed", "stacked", "weight_as_output", "double")]


@pytest.mark.parametrize("name", [n for n in QUANTIZABLE if n != "constants"])
def test_each_model_gives_what_its_codes_stand_for(name, tmp_path):
    proto = MODELS[name]()
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target)
    onnx.checker.check_model(str(target), full_check=True)
    weights = dequantized(onnx.load(target))
    kind = proto.graph.input[0].type.tensor_type
    x = tokens(6, HIDDEN) if len(kind.shape.dim) == 2 else tokens(2, 6, HIDDEN)
    feeds = {"ids": np.arange(12).reshape(2, 6)} if name == "embedding" else {"x": x}
    if kind.elem_type == onnx.TensorProto.FLOAT16:
        feeds = {"x": x.astype(np.float16)}
    (got,), (expected,) = run(target, feeds), run(in_place(proto, weights), feeds)
    assert relative(got, expected) < (2e-3 if got.dtype == np.float16 else 2e-6)


def test_a_shared_weight_is_stored_once_with_a_node_for_each_reader(tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.shared(), tmp_path), target)
    written = onnx.load(target).graph
    assert [t.data_type for t in written.initializer if "quantized" in t.name] == [onnx.TensorProto.INT4]
    assert [n.op_type for n in written.node].count("DequantizeLinear") == 2


def test_names_that_are_taken_are_left_alone(tmp_path):
    """The model has values of the very names that the new ones would get."""
    nodes = [node("MatMul", "x w", "w_dequantized"), node("Neg", "w_dequantized", "w_quantized")]
    nodes.append(node("Add", "w_quantized w_scale", "y"))
    weights = {"w": weight(HIDDEN, HIDDEN), "w_scale": vector()}
    proto = build(nodes, weights, {"y": models.ACTIVATION, "w_quantized": models.ACTIVATION})
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target)
    onnx.checker.check_model(str(target), full_check=True)
    assert [o.name for o in onnx.load(target).graph.output] == ["y", "w_quantized"]
    for a, b in zip(run(target, x := {"x": tokens(2, 4, HIDDEN)}), run(source, x), strict=True):
        assert relative(a, b) < 0.2


@pytest.mark.parametrize(
    ("method", "form", "fmt", "message"),
    [
        pytest.param("awq_lite", "qdq", IntegerFormat(32), "form qdq keeps the float weights", id="scaled qdq"),
        pytest.param("rtn_dq", "dq", IntegerFormat(48), "block_size is 48", id="block size"),
        pytest.param("rtn_dq", "gguf", IntegerFormat(32), "form is 'gguf': choose one of dq, qdq", id="unknown form"),
        pytest.param("hqq", "dq", IntegerFormat(32), "method.name is 'hqq': choose one of", id="unknown method"),
        pytest.param("awq_lite", "dq", IntegerFormat(32), "needs calibration data and there is none", id="no data"),
    ],
)
def test_what_cannot_be_written_is_refused(method, form, fmt, message, tmp_path):
    source = save(models.mlp(), tmp_path)
    with pytest.raises(JaxqError, match=message):
        quantize(source, tmp_path / "out.onnx", method, fmt=fmt, form=form)
    assert list(tmp_path.iterdir()) == [source]


CUT_OFF = pytest.mark.xfail(strict=True, reason="the QuantizeLinear node cuts off at 4 or 8 bits")


@pytest.mark.parametrize("num_bits", [pytest.param(3, marks=CUT_OFF), 4, pytest.param(5, marks=CUT_OFF)])
def test_clipped_weights_mean_the_same_in_both_forms(num_bits, tmp_path):
    """QuantizeLinear cuts off at the ends of the type, which are not those of 3 or 5 bits."""
    source = save(models.gemm(), tmp_path)
    x = {"x": tokens(40, HIDDEN)}
    fmt = IntegerFormat(32, num_bits=num_bits)
    results = []
    for form in ("dq", "qdq"):
        outcome = quantize(source, tmp_path / f"{form}.onnx", "awq_clip", [Batch(x)], fmt, form)
        assert outcome.layers[0].clip_min < 1
        results += run(tmp_path / f"{form}.onnx", x)
    assert relative(*results) < 1e-6
