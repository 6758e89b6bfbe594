"""Stacks of matrices, such as experts: each is quantized by itself, on the tokens that it sees."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from jaxq.errors import JaxqError
from jaxq.files.model_file import load_model
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.microscaling import MxFormat
from jaxq.forms.registry import find_form
from jaxq.harness.command import _notes
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.job import Job
from jaxq.pipeline.outcome import Outcome
from jaxq.pipeline.quantize import quantize_model
from jaxq.readback.weights import read_back
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.models import HIDDEN, MODELS, tokens
from tests.support.moe_models import EXPERT_FFN, EXPERTS, UNREACHED, experts
from tests.support.running import initializers, quantize, relative, run, save, with_weights
from tests.support.stacks import ROUTER, X, expected_stack, in_float, product, stack
from tests.support.unpacked import dequantized

MOES = ("dense_moe", "masked_moe", "broadcast_moe", "gathered_moe")


FORMATS = [
    ("dq", IntegerFormat(32)),
    ("dq", IntegerFormat(-1)),
    ("dq", IntegerFormat(16, use_zero_point=True)),
    ("dq", IntegerFormat(32, num_bits=8)),
    ("dq", IntegerFormat(-1, num_bits=8, use_zero_point=True)),
    ("dq", IntegerFormat(128, full_range=True)),
    ("column_major", IntegerFormat(32)),
    ("column_major", IntegerFormat(16, use_zero_point=True)),
    ("qdq", IntegerFormat(32)),
    ("qdq", IntegerFormat(-1)),
    ("qdq", IntegerFormat(32, num_bits=8, use_zero_point=True)),
    ("portable", MxFormat("mxfp4")),
    ("portable", MxFormat("mxfp8")),
]


@pytest.mark.parametrize(
    ("form", "fmt"), FORMATS, ids=lambda v: v if isinstance(v, str) else f"{v.dtype} {v.block_size}"
)
@pytest.mark.parametrize(
    ("lead", "columns", "dtype"),
    [((3,), 20, np.float32), ((3,), 21, np.float32), ((1, 3), 20, np.float32), ((1,), 20, np.float32),
     ((3,), 20, np.float16)],
    ids=["even", "odd", "rank 4", "one matrix", "float16"],
)  # fmt: skip
def test_a_file_with_a_stack_is_the_model_on_its_dequantized_weights(form, fmt, lead, columns, dtype, tmp_path):
    w = stack(int(np.prod(lead)), 72, columns, dtype).reshape(*lead, 72, columns)
    shape = [*lead, 5, 72]
    proto, target = product(shape, w, [*lead, 5, columns]), tmp_path / "out.onnx"
    (layer,) = quantize(save(proto, tmp_path), target, fmt=fmt, form=form).layers
    onnx.checker.check_model(str(target), full_check=True)
    held, expected = dequantized(onnx.load(target))["w"], expected_stack(w, fmt)
    np.testing.assert_allclose(held, expected, rtol=2**-20, atol=1e-7)
    feeds, limit = {"x": tokens(*shape).astype(dtype)}, 2e-6 if dtype == np.float32 else 2e-3
    (got,), (wanted,) = run(target, feeds), run(with_weights(proto, {"w": held.astype(dtype)}), feeds)
    assert relative(got, wanted) < limit
    back = read_back(load_model(target))
    assert not back.unread
    (found,) = back.weights
    stored = "int8" if fmt.dtype == "int8" else fmt.dtype
    assert (found.form, found.dtype, found.shape) == (form, stored, w.shape)
    assert found.block_size == fmt.block_size
    np.testing.assert_allclose(found.dequantize(), held.astype(dtype).astype(np.float32), rtol=2**-20, atol=1e-7)
    assert relative(run(in_float(target), feeds)[0], wanted) < limit
    assert (layer.matrices, layer.c_in, layer.c_out) == (int(np.prod(lead)), 72, columns)
    assert layer.nbytes == found.nbytes


def test_the_standard_mx_form_holds_stacks(tmp_path):
    """No onnxruntime runs it on a CPU."""
    w, target = stack(3, 72, 20), tmp_path / "out.onnx"
    quantize(save(product([3, 5, 72], w, [3, 5, 20]), tmp_path), target, fmt=MxFormat("mxfp8"), form="mx_standard")
    onnx.checker.check_model(str(target), full_check=True)
    np.testing.assert_array_equal(dequantized(onnx.load(target))["w"], expected_stack(w, MxFormat("mxfp8")))
    np.testing.assert_array_equal(
        read_back(load_model(target)).weights[0].dequantize(), expected_stack(w, MxFormat("mxfp8"))
    )
    scales = [t for t in onnx.load(target).graph.initializer if t.data_type == TensorProto.FLOAT8E8M0]
    assert len(scales) == 1


def measured_loss(target: Path, proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Mean over a matrix's tokens of the squared output error, from the outputs themselves."""
    (got,), (wanted,) = run(target, {"x": x}), run(proto, {"x": x})
    return np.square(got.astype(np.float64) - wanted).sum(axis=-1).mean(axis=-1)


@pytest.mark.parametrize("method", ["awq_lite", "awq_clip", "awq_full", "best"])
@pytest.mark.parametrize("shape", [(3, 40, 64), (1, 40, 64), (40, 64)], ids=str)
def test_no_matrix_does_worse_than_rounding_to_nearest(method, shape, tmp_path):
    """Each has outlier channels of its own; the loss of the report is the one that the file has."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for i in range(len(x) if len(shape) > 2 else 1):
        x[i if len(shape) > 2 else slice(None), ..., [7 * i + 1, 5 * i + 30]] *= 30
    proto = product([*"ab"[: len(shape) - 1], 64], stack(3, 64, 32), [3, "d", 32])
    source = save(proto, tmp_path)
    losses, layers = {}, {}
    for name in ("rtn_dq", method):
        fmt = IntegerFormat(32, full_range=False)
        (layers[name],) = quantize(source, tmp_path / f"{name}.onnx", name, [Batch({"x": x})], fmt).layers
        losses[name] = measured_loss(tmp_path / f"{name}.onnx", proto, x)
        assert layers[name].loss == pytest.approx(losses[name].sum(), rel=1e-3)
        assert layers[name].loss_rtn == pytest.approx(losses["rtn_dq"].sum(), rel=1e-3)
    assert (losses[method] <= losses["rtn_dq"] * (1 + 1e-4)).all()
    assert (losses[method] < 0.8 * losses["rtn_dq"]).all()
    layer = layers[method]
    assert (layer.alpha is not None, layer.fold) == (
        (True, "Mul") if method in ("awq_lite", "awq_full") else (False, "")
    )
    assert (layer.clip_min < 1) == (method != "awq_lite")


def test_siblings_share_one_scale_for_each_matrix(tmp_path):
    """Gate and up read one product; what they make goes into the scales of up."""
    target = tmp_path / "out.onnx"
    outcome = quantize(save(models.masked_moe(), tmp_path), target, "awq_lite", [Batch(X)], exclude=ROUTER)
    assert [(x.name, x.fold) for x in outcome.layers] == [("gate", "Mul"), ("up", "Mul"), ("down", "weight")]
    written = onnx.load(target)
    (factor,) = [array for name, array in initializers(written).items() if "awq_factor" in name]
    assert factor.shape == (EXPERTS, 1, HIDDEN)
    assert (factor[UNREACHED] == 1).all()
    assert len(np.unique(factor, axis=0)) == EXPERTS
    (mul,) = [n for n in written.graph.node if n.name == "slots_awq_Mul"]
    assert sorted(n.name for n in written.graph.node if mul.output[0] in n.input) == ["/g/MatMul", "/u/MatMul"]


@pytest.mark.parametrize("method", ["rtn_dq", "awq_lite", "awq_clip", "awq_full", "best"])
@pytest.mark.parametrize("name", MOES)
def test_a_mixture_of_experts_is_quantized(name, method, tmp_path):
    source, target = save(MODELS[name](), tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, method, [Batch(X)], IntegerFormat(32, num_bits=8), exclude=ROUTER)
    onnx.checker.check_model(str(target), full_check=True)
    assert sum(layer.size for layer in outcome.layers) == 3 * EXPERTS * HIDDEN * EXPERT_FFN
    assert {d.name for d in outcome.skipped} == {"router", "router_bias", "off_on"} & set(
        initializers(onnx.load(source))
    )
    assert relative(*run(target, X), *run(source, X)) < 0.02
    assert relative(*run(target, X), *run(in_float(target), X)) < 2e-6


def test_gathered_experts_and_stacked_ones_get_the_same_numbers(tmp_path):
    """The same experts with the same tokens, written in two ways."""
    held = {}
    for name in ("masked_moe", "gathered_moe"):
        target = tmp_path / f"{name}.onnx"
        quantize(save(MODELS[name](), tmp_path, name), target, "awq_clip", [Batch(X)], exclude=ROUTER)
        held[name] = dequantized(onnx.load(target))
    for stacked in ("gate", "up", "down"):
        for i in range(EXPERTS):
            np.testing.assert_allclose(
                held["masked_moe"][stacked][i], held["gathered_moe"][f"{stacked}_{i}"], rtol=1e-5
            )


def notes(outcome: Outcome) -> dict[str, str]:
    return {layer.name: layer.note for layer in outcome.layers if layer.note}


@pytest.mark.parametrize("method", ["rtn_dq", "awq_lite", "awq_clip", "awq_full", "best"])
def test_an_expert_without_tokens_is_rounded_to_nearest_and_told(method, tmp_path):
    fmt = IntegerFormat(32)
    for name in ("masked_moe", "gathered_moe"):
        target = tmp_path / f"{name}.onnx"
        outcome = quantize(save(MODELS[name](), tmp_path, name), target, method, [Batch(X)], fmt, exclude=ROUTER)
        held = dequantized(onnx.load(target))
        if name == "masked_moe":
            said = f"1 of {EXPERTS} matrices saw no calibration token: rounded to nearest"
            assert notes(outcome) == dict.fromkeys(("gate", "up", "down"), said)
            got = held["gate"][UNREACHED]
        else:
            said = "saw no calibration token: rounded to nearest"
            unreached = [f"{kind}_{UNREACHED}" for kind in ("gate", "up", "down")]
            assert notes(outcome) == dict.fromkeys(unreached, said)
            assert all(layer.loss is None for layer in outcome.layers if layer.name in unreached)
            got = held[f"gate_{UNREACHED}"]
        np.testing.assert_allclose(got, expected_stack(experts()["gate"], fmt)[UNREACHED], rtol=1e-5)


def test_the_report_names_weights_with_the_same_note(tmp_path):
    """The sentences that a reader of the report should not miss."""
    source, target = save(models.gathered_moe(), tmp_path), tmp_path / "out.onnx"
    spec = MethodSpec("awq_lite", IntegerFormat(32), alpha_step=0.5)
    job = Job(source, target, spec, find_form("dq"), ROUTER, tmp_path / "cache")
    said = list(_notes(quantize_model(job, [Batch(X)])))
    assert said == ["'gate_2', 'up_2', 'down_2': saw no calibration token: rounded to nearest"]


@pytest.mark.parametrize("name", MOES)
def test_moments_of_experts_are_found_again(name, tmp_path):
    source, target = save(MODELS[name](), tmp_path), tmp_path / "out.onnx"
    runs = [quantize(source, target, "awq_lite", [Batch(X)], exclude=ROUTER, cache=tmp_path / "c") for _ in range(2)]
    assert [len(r.windows) for r in runs] == [1, 0]
    assert runs[0].moments_from_cache == 0
    assert runs[1].moments_from_cache == (2 if name != "gathered_moe" else 2 * EXPERTS)
    assert runs[0].layers == runs[1].layers


def test_a_stack_that_multiplies_a_vector_is_refused(tmp_path):
    proto = product([8], stack(3, 8, 4), [3, 4])
    with pytest.raises(JaxqError, match="activation 'x' is a vector that a stack multiplies: exclude it"):
        quantize(save(proto, tmp_path), tmp_path / "o.onnx", "awq_lite", [Batch({"x": tokens(8)})])


def test_a_matrix_that_is_not_finite_is_refused(tmp_path):
    w = stack(3)
    w[1, 4, [5, 6]] = np.inf
    with pytest.raises(JaxqError, match="weight 'w' has 2 values that are NaN or infinite"):
        quantize(save(product([3, 5, 72], w, [3, 5, 20]), tmp_path), tmp_path / "out.onnx")
