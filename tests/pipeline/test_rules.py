"""Rules: other formats for some weights, and what their siblings make of it."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.forms.registry import FORMS
from jaxq.pipeline.job import Gather, Rule
from jaxq.runtime.batches import Batch
from jaxq.search.result import Layer
from tests.support import models
from tests.support.forms import fused, run_form, skip_old
from tests.support.models import HIDDEN, tokens
from tests.support.running import RUNTIME, initializers, quantize, relative, run, save, with_weights
from tests.support.unpacked import dequantized

X = {"x": tokens(4, 10, HIDDEN)}
INT8 = IntegerFormat(32, 8)


def held(layers: Sequence[Layer]) -> dict[str, tuple[str, int]]:
    return {layer.name: (layer.dtype, layer.block_size) for layer in layers}


FORMATS = {
    **{form: ("int4", IntegerFormat(32, 8)) for form in ("dq", "qdq", "column_major", "matmulnbits")},
    **{form: ("int4", IntegerFormat(-1, 8)) for form in ("trt", "trt_qdq")},
    "portable": ("mxfp4", make_format("mxfp8", 32)),
    "mx_standard": ("mxfp4", make_format("mxfp8", 32)),
}


@pytest.mark.parametrize(("form", "dtype", "other"), [pytest.param(f, *both, id=f) for f, both in FORMATS.items()])
def test_each_weight_is_held_as_its_rule_says(form, dtype, other, tmp_path):
    skip_old(form, other)
    proto = models.swiglu()
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, fmt=make_format(dtype, 32), form=form, rules=(Rule(("up", "*/y/*"), other),))
    expected = (other.dtype, other.block_size)
    assert held(outcome.layers) == {"gate": (dtype, 32), "up": expected, "down": expected}
    assert outcome.unmatched == ()
    onnx.checker.check_model(str(target), full_check=True)
    weights = dequantized(onnx.load(target))
    want = run(with_weights(proto, weights), X)[0]
    assert relative(run_form(form, target, X)[0], want) < 2e-6
    errors = {n: relative(weights[n], w) for n, w in initializers(proto).items()}
    assert errors["up"] < errors["gate"] / 3 and errors["down"] < errors["gate"] / 3


def test_all_forms_that_hold_two_dtypes_are_mixed_here():
    assert set(FORMATS) == {name for name, form in FORMS.items() if len(form.block_sizes) > 1}


@pytest.mark.parametrize("method", ["awq_lite", "awq_full"])
@pytest.mark.parametrize(
    ("form", "other"),
    [
        pytest.param("dq", IntegerFormat(32, 8), id="dq, blocks"),
        pytest.param("dq", IntegerFormat(-1, 8), id="dq, per channel"),
        pytest.param("matmulnbits", IntegerFormat(64, 8, use_zero_point=True), id="matmulnbits, zero points"),
    ],
)
def test_siblings_of_two_formats_share_one_scale(form, other, method, tmp_path):
    """Each is rounded in its own format; the activation is divided once, in the norm's vector."""
    skip_old(form, other)
    proto = models.siblings()
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, method, [Batch(X)], IntegerFormat(32), form, rules=(Rule(("k",), other),))
    layers = outcome.layers
    eight = (other.dtype, other.block_size)
    assert held(layers) == {"q": ("int4", 32), "k": eight, "v": ("int4", 32)}
    assert [layer.fold for layer in layers] == ["vector"] * 3
    assert len({layer.alpha for layer in layers}) == 1
    losses = [(layer.loss or 0, layer.loss_rtn or 0) for layer in layers]
    assert sum(own for own, _ in losses) < sum(rtn for _, rtn in losses)
    written = onnx.load(target)
    scales = [name for name in initializers(written) if "awq" in name]
    assert scales == ["norm_awq"]
    weights = dequantized(written) | {"norm": initializers(written)["norm_awq"]}
    assert relative(run(target, X)[0], run(with_weights(proto, weights), X)[0]) < 2e-6
    s = initializers(proto)["norm"] / initializers(written)["norm_awq"]
    for name, bound in (("q", 0.2), ("k", 0.02), ("v", 0.2)):
        assert relative(weights[name] / s[:, None], initializers(proto)[name]) < bound


def test_the_common_scale_is_found_for_all_siblings_together(tmp_path):
    """With the same candidates, no sibling's own choice does better for the sum of them."""
    source = save(models.siblings(), tmp_path)

    def loss(*rules: Rule, method: str = "awq_lite") -> float:
        outcome = quantize(source, tmp_path / "out.onnx", method, [Batch(X)], IntegerFormat(32), rules=rules)
        return sum(layer.loss or 0 for layer in outcome.layers)

    eight = Rule(("q", "k"), INT8)
    mixed, alone = loss(eight), loss()
    assert mixed < alone
    assert mixed < loss(eight, method="rtn")


@pytest.mark.parametrize(
    ("rules", "expected", "useless"),
    [
        pytest.param([("up", 8), ("*", 3)], {"gate": 3, "up": 8, "down": 3}, (), id="the first that fits"),
        pytest.param([("*", 3), ("up", 8)], {"gate": 3, "up": 3, "down": 3}, (), id="a later one adds nothing"),
        pytest.param([("*/u/MatMul", 8)], {"gate": 4, "up": 8, "down": 4}, (), id="by the node"),
        pytest.param([("Up", 8), ("up", 2)], {"gate": 4, "up": 2, "down": 4}, ("Up",), id="misspelt"),
        pytest.param([("layer.0.*", 8)], {"gate": 4, "up": 4, "down": 4}, ("layer.0.*",), id="fits nothing"),
    ],
)
def test_the_first_rule_that_fits_counts(rules, expected, useless, tmp_path):
    made = tuple(Rule((pattern,), IntegerFormat(32, bits)) for pattern, bits in rules)
    outcome = quantize(save(models.swiglu(), tmp_path), tmp_path / "out.onnx", rules=made)
    assert held(outcome.layers) == {name: (f"int{bits}", 32) for name, bits in expected.items()}
    assert outcome.unmatched == useless


def test_a_rule_for_an_excluded_weight_is_useless(tmp_path):
    rules = (Rule(("up", "down"), INT8),)
    outcome = quantize(save(models.swiglu(), tmp_path), tmp_path / "out.onnx", exclude=("up",), rules=rules)
    assert held(outcome.layers) == {"gate": ("int4", 32), "down": ("int8", 32)}
    assert outcome.unmatched == ("up",)


def test_a_rule_that_names_a_table_alone_is_told_of(tmp_path):
    """How tables are held is said elsewhere."""
    gather, rules = Gather(1, IntegerFormat(32)), (Rule(("tab*",), IntegerFormat(32, 8)), Rule(("*",), INT8))
    outcome = quantize(save(models.embedding(), tmp_path), tmp_path / "out.onnx", gather=gather, rules=rules)
    assert held(outcome.layers) == {"table": ("int4", 32), "w": ("int8", 32)}
    (notices,) = outcome.notices
    assert "'tab*' matches only tables of Gather" in notices


@pytest.mark.skipif(RUNTIME < (1, 25), reason="this onnxruntime fuses no weights of 8 bits")
@pytest.mark.parametrize("block", [-1, 16, 128])
@pytest.mark.parametrize("form", ["dq", "qdq"])
def test_weights_of_8_bits_are_fused_beside_those_of_4(form, block, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.swiglu(), tmp_path), target, form=form, rules=(Rule(("up",), IntegerFormat(block, 8)),))
    operators = fused(target)
    assert operators["com.microsoft:MatMulNBits"] == 3
    assert not {":DequantizeLinear", ":QuantizeLinear", ":MatMul"} & set(operators)


def test_a_mixed_file_has_mixed_bits(tmp_path):
    outcome = quantize(save(models.mlp(), tmp_path), tmp_path / "out.onnx", rules=(Rule(("up",), INT8),))
    assert outcome.bits_per_weight == (4 + 8) / 2 + 32 / 32
    assert np.isclose(sum(layer.nbytes for layer in outcome.layers) * 8 / (2 * HIDDEN * models.FFN), 7)
