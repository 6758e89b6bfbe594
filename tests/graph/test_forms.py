"""Quantized files are valid, run, and give what the weights that their own bytes stand for give."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from jaxq.capture import Batch
from jaxq.errors import JaxqError
from jaxq.formats import IntegerFormat
from tests.graph import models
from tests.graph.models import FFN, HIDDEN, MODELS, build, node, tokens, vector, weight
from tests.graph.running import OPSET_23, RUNTIME, initializers, quantize, relative, run, save, with_weights
from tests.graph.unpacked import dequantized

OLD = RUNTIME < (1, 25)  # fuses no Gemm
NAMES = ("plain", "straight", "shared", "table", "crosswise", "bare")


def every_reader(dtype: type = np.float32) -> onnx.ModelProto:
    """Each kind of node that can read a weight, c_in = 96: whole blocks of 16 and 32, ragged ones of 64 and above."""
    nodes = [
        node("MatMul", "x plain", "a"),
        node("Gemm", "x straight bias", "b", transB=0),
        node("Gemm", "x crosswise bias", "c", transB=1),
        node("Gemm", "x bare", "d", transB=1),
        node("MatMul", "x shared", "e"),
        node("Neg", "x", "negative"),
        node("MatMul", "negative shared", "f"),
        node("Gemm", "x table", "g", transB=1),
        node("Gemm", "negative table bias", "h", transB=1),
        node("Concat", "a b c e f g h", "y", axis=-1),
    ]
    weights = {name: weight(FFN, 32, seed=i, dtype=dtype) for i, name in enumerate(NAMES)}
    weights |= {name: np.ascontiguousarray(weights[name].T) for name in ("crosswise", "bare", "table")}
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outputs = {"y": ("n", 7 * 32), "d": ("n", 32)}
    x = models.value("x", ("n", FFN), kind)
    return build(nodes, weights | {"bias": vector(32).astype(dtype)}, outputs, [x], dtype=kind)


def in_place(source: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The float model with these weights [c_in, c_out], turned where it holds them turned."""
    old = initializers(source)
    return with_weights(source, {n: w if w.shape == old[n].shape else w.T for n, w in weights.items()})


FORMATS = [
    *[pytest.param("dq", IntegerFormat(block), np.float32, id=f"int4 {block}") for block in (16, 64, 256, -1)],
    *[pytest.param("dq", IntegerFormat(b, use_zero_point=True), np.float32, id=f"uint4 {b}") for b in (32, 128, -1)],
    pytest.param("dq", IntegerFormat(64, num_bits=8), np.float32, id="int8 64"),
    pytest.param("dq", IntegerFormat(-1, num_bits=8, use_zero_point=True), np.float32, id="uint8 -1"),
    pytest.param("dq", IntegerFormat(32, full_range=True), np.float32, id="full range"),
    pytest.param("dq", IntegerFormat(32, num_bits=3), np.float32, id="3 bits"),
    pytest.param("dq", IntegerFormat(32, num_bits=5, use_zero_point=True), np.float32, id="5 bits"),
    pytest.param("dq", IntegerFormat(32), np.float16, id="half int4"),
    pytest.param("dq", IntegerFormat(32, full_range=True), np.float16, id="half full range"),
    pytest.param("dq", IntegerFormat(-1, use_zero_point=True), np.float16, id="half uint4"),
    *[pytest.param("qdq", IntegerFormat(block), np.float32, id=f"qdq int4 {block}") for block in (64, -1)],
    pytest.param("qdq", IntegerFormat(32, use_zero_point=True), np.float32, id="qdq uint4"),
    pytest.param("qdq", IntegerFormat(32, full_range=True), np.float32, id="qdq full range"),
    pytest.param("qdq", IntegerFormat(64, num_bits=8), np.float32, id="qdq int8"),
    pytest.param("qdq", IntegerFormat(32), np.float16, id="qdq half"),
]


@pytest.mark.parametrize(("form", "fmt", "dtype"), FORMATS)
def test_a_file_gives_what_its_codes_stand_for(form, fmt, dtype, tmp_path):
    proto = every_reader(dtype)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, fmt=fmt, form=form)
    assert len(outcome.layers) == 6
    onnx.checker.check_model(str(target), full_check=True)
    written = onnx.load(target)
    weights = dequantized(written)
    assert set(weights) == set(NAMES)
    rows = 1 if fmt.block_size == -1 else -(-FFN // fmt.block_size)
    for name, w in weights.items():
        scale = initializers(written)[f"{name}_scale"]
        assert (scale.shape, scale.dtype) == ((32,) if fmt.block_size == -1 else (rows, 32), dtype)
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


FUSED = [IntegerFormat(b, use_zero_point=b in (32, 128)) for b in (16, 32, 64, 128, 256)]


@pytest.mark.parametrize("fmt", [*FUSED, IntegerFormat(32, full_range=True)], ids=str)
def test_onnxruntime_fuses_every_weight(fmt, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(every_reader(), tmp_path), target, fmt=fmt)
    operators = fused(target)
    assert operators["com.microsoft:MatMulNBits"] == 8 - 3 * OLD
    assert operators.get(":DequantizeLinear", 0) == 3 * OLD


@pytest.mark.parametrize("name", ["swiglu", "attention"])
def test_scaled_weights_are_fused_too(name, tmp_path):
    target = tmp_path / "out.onnx"
    outcome = quantize(save(MODELS[name](), tmp_path), target, "awq_lite", [Batch({"x": tokens(4, 10, HIDDEN)})])
    operators = fused(target)
    assert operators["com.microsoft:MatMulNBits"] == len(outcome.layers)
    assert ":DequantizeLinear" not in operators


@pytest.mark.parametrize(
    ("opset", "ir_version", "expected"),
    [
        pytest.param(13, 7, (21, 10), id="13"),
        pytest.param(18, 8, (21, 10), id="18"),
        pytest.param(21, 10, (21, 10), id="21"),
        pytest.param(21, 11, (21, 11), id="21 in a newer file format", marks=OPSET_23),
        pytest.param(23, 11, (23, 11), id="23", marks=OPSET_23),
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


@pytest.mark.parametrize("same", [False, True], ids=["two activations", "one activation"])
def test_every_reader_of_a_shared_weight_has_a_copy(same, tmp_path):
    """onnxruntime fuses no codes that two nodes read."""
    target = tmp_path / "out.onnx"
    (layer,) = quantize(save(models.shared(same), tmp_path), target).layers
    written = onnx.load(target).graph
    held = {t.name: t.data_type for t in written.initializer}
    assert held == {
        "w_quantized": onnx.TensorProto.INT4,
        "w_quantized_0": onnx.TensorProto.INT4,
        "w_scale": onnx.TensorProto.FLOAT,
        "w_scale_0": onnx.TensorProto.FLOAT,
    }
    assert layer.nodes == ("/a/MatMul", "/b/MatMul")
    assert layer.nbytes == sum(len(t.raw_data) for t in written.initializer) == 2 * HIDDEN * HIDDEN * (4 + 32 / 32) / 8
    assert {n.name: n.output[0] for n in written.node if n.op_type == "DequantizeLinear"} == {
        f"{node}_DequantizeLinear": f"{node}_weight" for node in layer.nodes
    }
    assert ":DequantizeLinear" not in fused(target)


def test_the_form_qdq_keeps_one_float_copy_of_a_shared_weight(tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.shared(), tmp_path), target, form="qdq")
    written = onnx.load(target).graph
    assert sorted(t.name for t in written.initializer) == ["w", "w_scale"]
    assert [n.op_type for n in written.node].count("QuantizeLinear") == 2


def test_names_that_are_taken_are_left_alone(tmp_path):
    """The model has values of the very names that the new ones would get."""
    taken = "/MatMul_weight"
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], [taken], "/MatMul"), node("Neg", taken, "w_quantized")]
    nodes[1].name = "/MatMul_DequantizeLinear"
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
        pytest.param("rtn", "qdq", IntegerFormat(32, num_bits=3), "form 'qdq' holds 4, 8 bits", id="3 bits"),
        pytest.param("awq_clip", "qdq", IntegerFormat(32, num_bits=5), "num_bits is 5: the form 'qdq'", id="5 bits"),
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


def test_clipped_weights_mean_the_same_in_both_forms(tmp_path):
    """QuantizeLinear cuts off at the ends of the type, where the codes do."""
    source = save(models.gemm(), tmp_path)
    x = {"x": tokens(40, HIDDEN)}
    results = []
    for form in ("dq", "qdq"):
        outcome = quantize(source, tmp_path / f"{form}.onnx", "awq_clip", [Batch(x)], form=form)
        assert outcome.layers[0].clip_min < 1
        results += run(tmp_path / f"{form}.onnx", x)
    assert relative(*results) < 1e-6
