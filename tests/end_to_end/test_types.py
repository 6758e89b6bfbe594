"""bfloat16, float16 and mixed models, and what is quantized already."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxq.errors import JaxqError
from jaxq.evaluation.accuracy import Evaluation, evaluate
from jaxq.files.model_file import PROTOBUF_LIMIT, load_model, save_model
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.forms.registry import FORMS
from jaxq.pipeline.job import Gather
from jaxq.readback.weights import read_weights
from jaxq.runtime.batches import Batch
from jaxq.runtime.bfloat16 import has_bfloat16, widen_bfloat16
from tests.support import models
from tests.support.models import FFN, HIDDEN, node, tokens, value, weight
from tests.support.running import initializers, quantize, relative, run, save, with_weights

BF16 = ml_dtypes.bfloat16
X = {"x": tokens(4, 10, HIDDEN)}


def narrow(opset: int = 18) -> onnx.ModelProto:
    """A norm, siblings and a last layer in bfloat16, between inputs and outputs in float32."""
    nodes = [
        node("Cast", "x", "b", to=TensorProto.BFLOAT16),
        node("Mul", "b norm", "n"),
        node("MatMul", "n gate", "g"),
        node("MatMul", "n up", "u"),
        node("Mul", "g u", "p"),
        node("MatMul", "p down", "d"),
        node("Cast", "d", "y", to=TensorProto.FLOAT),
    ]
    weights = {"gate": weight(HIDDEN, FFN), "up": weight(HIDDEN, FFN, seed=1), "down": weight(FFN, HIDDEN)}
    weights |= {"norm": models.vector()}
    narrowed = {name: w.astype(BF16) for name, w in weights.items()}
    return models.build(nodes, narrowed, {"y": models.ACTIVATION}, opset=opset)


def widened(path: Path) -> onnx.ModelProto:
    model = load_model(path)
    widen_bfloat16(model)
    assert not has_bfloat16(model)
    copy = path.with_suffix(".widened.onnx")
    save_model(model, copy, PROTOBUF_LIMIT)
    return onnx.load(copy)


def forms() -> list:
    return [pytest.param(form, next(iter(held.block_sizes)), id=form) for form, held in FORMS.items()]


@pytest.mark.parametrize(("form", "dtype"), forms())
def test_a_bfloat16_model_stays_one_and_holds_what_numpy_works_out(form, dtype, tmp_path):
    fmt = make_format("int4" if dtype == "int2" else dtype, None)
    source, target = save(narrow(), tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, form=form, fmt=fmt)
    assert [layer.name for layer in outcome.layers] == ["gate", "up", "down"]
    onnx.checker.check_model(str(target), full_check=True)
    for found in read_weights(load_model(target)):
        assert found.float_dtype == ir.DataType.BFLOAT16
        if fmt.dtype == "int4":
            np.testing.assert_array_equal(found.dequantize(), by_numpy(initializers(narrow())[found.name]))


def by_numpy(w: np.ndarray) -> np.ndarray:
    """4 bits in blocks of 32, scales and products in bfloat16."""
    blocks = w.astype(np.float32).reshape(-1, 32, w.shape[1])
    s = (np.abs(blocks).max(1, keepdims=True) / np.float32(7)).astype(BF16).astype(np.float32)
    q = np.clip(np.rint(blocks / s), -8, 7)
    return (q * s).reshape(w.shape).astype(BF16).astype(np.float32)


@pytest.mark.parametrize("form", ["dq", "column_major", "matmulnbits"])
def test_a_bfloat16_file_runs_widened(form, tmp_path):
    proto = narrow()
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target, form=form)
    names = {t.name: t.data_type for t in onnx.load(target).graph.initializer}
    assert {names[n] for n in names if n.endswith("_scale")} == {TensorProto.BFLOAT16}
    weights = {w.name: w.dequantize() for w in read_weights(load_model(target))}
    floats = with_weights(widened(source), weights)
    # The widened file multiplies codes and scales in float32, where bfloat16 rounds the product.
    assert relative(run(widened(target), X)[0], run(floats, X)[0]) < 5e-3


@pytest.mark.parametrize("method", ["awq_lite", "awq_full", "best"])
def test_awq_is_calibrated_on_the_widened_windows(method, tmp_path):
    source, target = save(narrow(), tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, method, [Batch(X)], IntegerFormat(32, 3), window_bytes=1 << 14)
    assert len(outcome.windows) > 1
    assert sum(x.loss or 0 for x in outcome.layers) < sum(x.loss_rtn or 0 for x in outcome.layers)
    wanted = run(widened(source), X)[0]
    quantize(source, tmp_path / "rtn.onnx", fmt=IntegerFormat(32, 3))
    assert relative(run(widened(target), X)[0], wanted) < relative(run(widened(tmp_path / "rtn.onnx"), X)[0], wanted)
    onnx.checker.check_model(str(target), full_check=True)


def language_model(kind: type) -> onnx.ModelProto:
    """Token ids to logits in one float type, with a mask that is made by ConstantOfShape."""
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    zero = numpy_helper.from_array(np.zeros(1, kind), "zero")
    nodes = [
        node("Gather", "table input_ids", "e"),
        node("Shape", "e", "dims"),
        node("ConstantOfShape", "dims", "zeros", value=zero),
        node("Add", "e zeros", "h"),
        node("MatMul", "h w", "v"),
        node("MatMul", "v head", "logits"),
    ]
    weights = {"table": weight(48, HIDDEN), "w": weight(HIDDEN, HIDDEN), "head": weight(HIDDEN, 48)}
    ids = value("input_ids", ("batch", "sequence"), TensorProto.INT64)
    held = {name: w.astype(kind) for name, w in weights.items()}
    return models.build(nodes, held, {"logits": ("batch", "sequence", 48)}, [ids], dtype=dtype, opset=20)


def test_a_bfloat16_language_model_is_judged_in_float32(tmp_path):
    ids = np.random.default_rng(0).integers(48, size=(2, 20))
    results = []
    for kind in (BF16, np.float32):
        source, target = save(language_model(kind), tmp_path, f"{kind.__name__}.onnx"), tmp_path / "out.onnx"
        quantize(source, target, gather=Gather(1, IntegerFormat(32)))
        found = evaluate(source, target, [Batch({"input_ids": ids})])
        assert isinstance(found, Evaluation)
        results.append((found.float_perplexity, found.runtimes["level 1"].kl))
    (narrow_perplexity, narrow_kl), (perplexity, kl) = results
    assert narrow_perplexity == pytest.approx(perplexity, rel=1e-2)
    assert 0 < narrow_kl < 2 * kl


def test_inputs_in_bfloat16_are_calibrated(tmp_path):
    proto = models.typed(BF16, TensorProto.BFLOAT16)
    batch = Batch({"x": X["x"].astype(BF16)})
    outcome = quantize(save(proto, tmp_path), tmp_path / "out.onnx", "awq_clip", [batch])
    assert outcome.layers[0].loss is not None


def test_widening_leaves_a_float32_model_as_it_is(tmp_path):
    source = save(models.swiglu(), tmp_path)
    assert not has_bfloat16(load_model(source))
    assert has_bfloat16(load_model(save(narrow(), tmp_path, "narrow.onnx")))
    assert relative(run(widened(source), X)[0], run(source, X)[0]) == 0


@pytest.mark.parametrize("form", ["dq", "qdq", "matmulnbits"])
def test_a_model_of_two_float_types_keeps_both(form, tmp_path):
    """A norm in float32, products in float16."""
    nodes = [
        node("Mul", "x norm", "n"),
        node("Cast", "n", "half", to=TensorProto.FLOAT16),
        node("MatMul", "half a", "h"),
        node("Cast", "h", "wide", to=TensorProto.FLOAT),
        node("MatMul", "wide b", "y"),
    ]
    weights = {"norm": models.vector(), "a": weight(HIDDEN, HIDDEN, dtype=np.float16), "b": weight(HIDDEN, HIDDEN)}
    proto = models.build(nodes, weights, {"y": models.ACTIVATION})
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target, form=form)
    onnx.checker.check_model(str(target), full_check=True)
    found = {w.name: w for w in read_weights(load_model(target))}
    assert (found["a"].float_dtype, found["b"].float_dtype) == (ir.DataType.FLOAT16, ir.DataType.FLOAT)
    expected = run(with_weights(proto, {name: w.dequantize() for name, w in found.items()}), X)[0]
    assert relative(run(target, X)[0], expected) < 2e-3


@pytest.mark.parametrize("form", ["dq", "matmulnbits", "column_major"])
def test_what_is_quantized_already_is_listed_and_left_alone(form, tmp_path):
    first, second, third = (tmp_path / f"{i}.onnx" for i in range(3))
    quantize(save(models.swiglu(), tmp_path), first, form=form, exclude=("down",))
    outcome = quantize(first, second, form=form)
    assert [layer.name for layer in outcome.layers] == ["down"]
    reasons = {d.name: d.reason for d in outcome.skipped}
    assert reasons == {
        **dict.fromkeys(("gate_quantized", "up_quantized"), "quantized already"),
        **dict.fromkeys(("gate_scale", "up_scale"), "part of a weight that is quantized already"),
    }
    assert {d.nbytes for d in outcome.skipped if d.reason == "quantized already"} == {HIDDEN * FFN // 2}
    before, after = initializers(onnx.load(first)), initializers(onnx.load(second))
    for name in reasons:
        np.testing.assert_array_equal(before[name], after[name])
    with pytest.raises(JaxqError, match=r"is quantized already: 3 tensors of codes, 0\.01 MB; no float weight can be"):
        quantize(second, third, form=form)
    assert not third.exists()


def test_integer_products_are_named_too(tmp_path):
    codes = np.ones((HIDDEN, HIDDEN), np.int8)
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s zp"),
        node("MatMulInteger", "q codes zp", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("MatMul", "f w", "y"),
    ]
    proto = models.build(nodes, {"codes": codes, "w": weight(HIDDEN, HIDDEN)}, {"y": models.ACTIVATION})
    outcome = quantize(save(proto, tmp_path), tmp_path / "out.onnx")
    assert [(d.name, d.reason) for d in outcome.skipped] == [("codes", "quantized already")]
