"""A Gemm with any attributes and any bias computes the same afterwards, and its weight is found."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from jaxq.graph.sites import find_sites
from tests.support import normalize_models
from tests.support.models import FFN, HIDDEN, tokens
from tests.support.prepared import OPSETS, prepared
from tests.support.running import quantize, relative, run, save, with_weights
from tests.support.unpacked import dequantized

BIASES = [None, (), (1,), (FFN,), (1, FFN), (8, 1), (8, FFN)]


@pytest.mark.parametrize("computed", [False, True], ids=["constant", "computed"])
@pytest.mark.parametrize("shape", BIASES, ids=str)
@pytest.mark.parametrize("transA", [0, 1], ids=["", "transA"])
@pytest.mark.parametrize("transB", [0, 1], ids=["", "transB"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (0.25, -0.5), (1.0, 0.0), (-2.0, 0.0)])
def test_each_gemm_is_a_plain_one(alpha, beta, transB, transA, shape, computed):
    if computed and shape is None:
        pytest.skip("no bias")
    source = normalize_models.gemm(shape, computed, alpha=alpha, beta=beta, transA=transA, transB=transB)
    model = prepared(source)
    ((site,), _) = find_sites(model.graph)
    (gemm,) = [n for n in model.graph if n.op_type == "Gemm"]
    assert (site.name, site.transposed, gemm.name, set(gemm.attributes)) == (
        "w",
        bool(transB),
        "/y/Gemm",
        {"transB"} | set(gemm.attributes),
    )
    assert not {"alpha", "beta", "transA"} & set(gemm.attributes)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    x = {"x": tokens(HIDDEN, 8) if transA else tokens(8, HIDDEN)}
    assert relative(run(result, x)[0], run(source, x)[0]) < 1e-6


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("shape", BIASES, ids=str)
@pytest.mark.parametrize("how", [{}, {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1}], ids=["plain", "all"])
def test_each_bias_is_right_when_the_weight_is_quantized(how, shape, form, tmp_path):
    source, target = normalize_models.gemm(shape, **how), tmp_path / "out.onnx"
    quantize(save(source, tmp_path), target, form=form)
    w = dequantized(onnx.load(target))["w"]
    reference = with_weights(source, {"w": w.T if how else w})
    x = {"x": tokens(HIDDEN, 8) if how else tokens(8, HIDDEN)}
    assert relative(run(target, x)[0], run(reference, x)[0]) < 2e-6


def test_a_gemm_in_float16_stays_in_float16():
    source = normalize_models.gemm((FFN,), dtype=np.float16, alpha=0.5, beta=2.0, transA=1)
    result = ir.to_proto(prepared(source))
    onnx.checker.check_model(result, full_check=True)
    assert {t.data_type for t in result.graph.initializer} == {TensorProto.FLOAT16}
    x = {"x": tokens(HIDDEN, 8).astype(np.float16)}
    assert relative(run(result, x)[0], run(source, x)[0]) < 2e-3


def test_a_gemm_with_alpha_0_is_left_alone():
    ((), (skipped, *_)) = find_sites(prepared(normalize_models.gemm(alpha=0.0)).graph)
    assert (skipped.name, skipped.reason) == ("w", "read by a Gemm with alpha=0")


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("opset", OPSETS)
def test_each_opset_with_a_gemm_of_all_attributes(opset, form, tmp_path):
    source = normalize_models.gemm((8, 1), opset=opset, alpha=0.5, beta=2.0, transA=1, transB=1)
    quantize(save(source, tmp_path), tmp_path / "out.onnx", form=form)
    w = dequantized(onnx.load(tmp_path / "out.onnx"))["w"]
    x = {"x": tokens(HIDDEN, 8)}
    assert relative(run(tmp_path / "out.onnx", x)[0], run(with_weights(source, {"w": w.T}), x)[0]) < 2e-6
