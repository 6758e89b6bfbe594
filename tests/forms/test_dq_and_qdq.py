"""The default form, DequantizeLinear and MatMul, and qdq: what is in the graph and what onnxruntime makes of it."""

import numpy as np
import onnx
import pytest

from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.forms import every_reader, fused, in_place
from tests.support.models import HIDDEN, MODELS, build, node, tokens, vector, weight
from tests.support.running import OPSET_23, RUNTIME, quantize, relative, run, save
from tests.support.unpacked import dequantized

OLD = RUNTIME < (1, 25)  # fuses no Gemm
NARROW = [IntegerFormat(64, scale_dtype="float16"), IntegerFormat(16, scale_dtype=FLOAT8)]
FUSED = [IntegerFormat(b, use_zero_point=b in (32, 128)) for b in (16, 32, 64, 128, 256)]


@pytest.mark.parametrize("fmt", [*FUSED, IntegerFormat(32, full_range=True), *NARROW], ids=str)
def test_onnxruntime_fuses_every_weight(fmt, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(every_reader(), tmp_path), target, fmt=fmt)
    operators = fused(target)
    assert operators["com.microsoft:MatMulNBits"] == 8 - 3 * OLD
    assert operators.get(":DequantizeLinear", 0) == 3 * OLD
    assert not {":Cast", ":Mul"} & operators.keys()


@pytest.mark.parametrize("form", ["dq", "column_major", "matmulnbits"])
def test_narrow_scales_take_fewer_bytes(form, tmp_path):
    source, sizes = save(models.gemm(), tmp_path), {}
    for dtype in ("float32", "float16", FLOAT8):
        target, fmt = tmp_path / f"{dtype}.onnx", IntegerFormat(32, scale_dtype=dtype)
        (layer,) = quantize(source, target, fmt=fmt, form=form).layers
        kinds = {t.name: t.data_type for t in onnx.load(target).graph.initializer}
        assert kinds[f"{layer.name}_scale"] == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        sizes[dtype] = layer.nbytes
        scales = layer.c_in * layer.c_out // 32
    assert sizes["float32"] - sizes["float16"] == 2 * scales
    assert sizes["float32"] - sizes[FLOAT8] == 3 * scales - 4


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


QUANTIZABLE = [name for name in MODELS if name not in ("gemm_mixed", "weight_as_output", "double")]


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
    if name == "convolution":
        feeds = {"x": tokens(2, 8, 9, 9)}
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
        f"{node}_weight_DequantizeLinear": f"{node}_weight" for node in layer.nodes
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
    nodes[1].name = "/MatMul_weight_DequantizeLinear"
    nodes.append(node("Add", "w_quantized w_scale", "y"))
    weights = {"w": weight(HIDDEN, HIDDEN), "w_scale": vector()}
    proto = build(nodes, weights, {"y": models.ACTIVATION, "w_quantized": models.ACTIVATION})
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target)
    onnx.checker.check_model(str(target), full_check=True)
    assert [o.name for o in onnx.load(target).graph.output] == ["y", "w_quantized"]
    for a, b in zip(run(target, x := {"x": tokens(2, 4, HIDDEN)}), run(source, x), strict=True):
        assert relative(a, b) < 0.2


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
