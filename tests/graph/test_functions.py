"""Functions with weights are written out where they are called; the others are listed with the reason."""

import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from jaxq.errors import JaxqError
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites
from jaxq.graph.skipped import skipped_in_functions
from tests.support import normalize_models
from tests.support.models import FFN, HIDDEN, node, weight
from tests.support.normalize_models import NORMALIZED
from tests.support.prepared import FUNCTIONS, OPSETS, X, prepared, with_values
from tests.support.running import quantize, relative, run, save
from tests.support.unpacked import dequantized


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_opset_with_functions(name, opset, form, tmp_path):
    """The weights of functions have no names in the source: the float model that is compared with is written out."""
    source, target = NORMALIZED[name].make(opset), tmp_path / "out.onnx"
    outcome = quantize(save(source, tmp_path), target, form=form)
    assert len(outcome.layers) == 2
    whole = ir.to_proto(prepared(source))
    assert relative(run(whole, X)[0], run(source, X)[0]) < 1e-6
    values = dequantized(onnx.load(target))
    assert relative(run(target, X)[0], run(with_values(whole, values), X)[0]) < 2e-6


def test_functions_with_weights_are_written_out_and_others_stay():
    model = prepared(normalize_models.given())
    assert [f.name for f in model.functions.values()] == ["Act"]
    assert [n.op_type for n in model.graph] == ["MatMul", "Act", "MatMul", "Act", "Act"]
    assert [site.name for site in find_sites(model.graph)[0]] == ["up_transposed", "down_transposed"]


@pytest.mark.parametrize("own", [17, 19])
def test_a_function_for_another_opset_is_taken_where_its_operators_mean_the_same(own, tmp_path):
    source = normalize_models.given(18, own)
    for form in ("dq", "matmulnbits"):
        outcome = quantize(save(source, tmp_path), tmp_path / "out.onnx", form=form)
        assert [layer.name for layer in outcome.layers] == ["up_transposed", "down_transposed"]
        assert relative(run(tmp_path / "out.onnx", X)[0], run(source, X)[0]) < 0.25


def misfit() -> onnx.ModelProto:
    """A function of opset 13, whose ReduceMean has its axes as attributes, in a model of opset 18."""
    held = node("Constant", "", "c", value=numpy_helper.from_array(weight(HIDDEN, HIDDEN)))
    nodes = [held, node("MatMul", "a c", "p"), node("ReduceMean", "p", "m", axes=[-1]), node("Sub", "p m", "q")]
    functions = [normalize_models.function("Centred", "a", "q", nodes, 13)]
    outer = [normalize_models.call("Centred", "x", "h"), node("MatMul", "h w", "y")]
    return normalize_models.with_functions(outer, {"w": weight(HIDDEN, FFN)}, functions, check=False)


def test_a_function_that_cannot_be_written_out_is_told_of(tmp_path):
    reason = (
        "it lies in the function 'local.Centred', which is written for opset 13 of 'ai.onnx', the model for 18, and "
        "ReduceMean differs between them: convert the model first"
    )
    model = prepared(misfit())
    ((site,), others) = find_sites(model.graph)
    assert (site.name, others) == ("w", [])
    assert [(d.name, d.shape, d.reason) for d in skipped_in_functions(model)] == [
        ("Centred/c", (HIDDEN, HIDDEN), reason)
    ]
    source = save(misfit(), tmp_path)
    outcome = quantize(source, tmp_path / "out.onnx", form="matmulnbits")
    assert [d.reason for d in outcome.skipped] == [reason]
    with pytest.raises(JaxqError, match=r"cannot be converted from opset 18 to 21: .*'local::Centred'"):
        quantize(source, tmp_path / "dq.onnx")


def test_functions_that_call_each_other_in_a_circle_are_refused():
    source = normalize_models.given()
    source.functions[0].node.append(normalize_models.call("Linear", "u u", "again"))
    model = ir.from_proto(source)
    with pytest.raises(JaxqError, match=r"the model's functions cannot be written out: .*yclic"):
        prepare(model)
