"""Where the division by AWQ's scale goes, and that it leaves the model's results alone."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from jaxq.formats.integers import IntegerFormat
from jaxq.forms.fold import Fold, divide_vectors, find_fold, insert_division
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import Group, Site, find_sites, sibling_groups
from jaxq.pipeline.outcome import Outcome
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.build import branch
from tests.support.models import ACTIVATION, FFN, HIDDEN, build, linear_pair, node, tokens, vector, weight
from tests.support.running import OPSET_23, initializers, quantize, relative, run, save, with_weights
from tests.support.unpacked import dequantized

TOLERANCE = 2e-6


def vector_times_linear() -> onnx.ModelProto:
    """A product of a linear layer and a vector: the vector is there to take the division."""
    nodes = [node("MatMul", "x first", "h"), node("Mul", "h scale", "b"), node("MatMul", "b second", "y")]
    weights = {"first": weight(HIDDEN, HIDDEN), "scale": vector(), "second": weight(HIDDEN, HIDDEN, seed=1)}
    return build(nodes, weights, {"y": ACTIVATION})


def scaled_by(factor: np.ndarray) -> onnx.ModelProto:
    nodes = [node("Mul", "x factor", "h"), node("MatMul", "h w", "y")]
    return build(nodes, {"factor": factor, "w": weight(HIDDEN, HIDDEN)}, {"y": ("batch", "sequence", HIDDEN)})


def rms_norm() -> onnx.ModelProto:
    nodes = [node("RMSNormalization", "x scale", "h"), node("MatMul", "h w", "y")]
    return build(nodes, {"scale": vector(), "w": weight(HIDDEN, HIDDEN)}, {"y": ACTIVATION}, opset=23, ir_version=11)


def shared_vector() -> onnx.ModelProto:
    """One vector scales two activations."""
    nodes = [
        node("Mul", "x scale", "h"),
        node("MatMul", "h first", "a"),
        node("Tanh", "a", "t"),
        node("Mul", "t scale", "i"),
        node("MatMul", "i second", "y"),
    ]
    weights = {"first": weight(HIDDEN, HIDDEN), "scale": vector(), "second": weight(HIDDEN, HIDDEN, seed=1)}
    return build(nodes, weights, {"y": ACTIVATION})


def residual() -> onnx.ModelProto:
    """Two linear layers added up."""
    nodes = [
        node("MatMul", "x a", "p"),
        node("MatMul", "x b", "q"),
        node("Add", "p q", "h"),
        node("MatMul", "h w", "y"),
    ]
    weights = {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate("abw")}
    return build(nodes, weights, {"y": ACTIVATION})


def add_to_input() -> onnx.ModelProto:
    """A linear layer added to what cannot be divided."""
    nodes = [node("MatMul", "x a", "p"), node("Add", "p x", "h"), node("MatMul", "h w", "y")]
    return build(nodes, {"a": weight(HIDDEN, HIDDEN), "w": weight(HIDDEN, HIDDEN, seed=1)}, {"y": ACTIVATION})


def read_in_branch() -> onnx.ModelProto:
    inner = [branch(node("Neg", "h", name)) for name in ("t", "e")]
    extra = node("If", "condition", "z", then_branch=inner[0], else_branch=inner[1])
    nodes = [node("MatMul", "x first", "h"), node("MatMul", "h second", "y"), extra]
    weights = {"first": weight(HIDDEN, HIDDEN), "second": weight(HIDDEN, HIDDEN), "condition": np.array(True)}
    return build(nodes, weights, {"y": ACTIVATION, "z": ACTIVATION})


def opened(model: onnx.ModelProto, name: str, exclude: tuple[str, ...] = ()) -> tuple[ir.Model, Group, list[Site]]:
    """The model in memory, the group that holds the weight ``name``, and all sites."""
    result = ir.from_proto(model)
    prepare(result)
    sites, _ = find_sites(result.graph, exclude)
    (group,) = [g for g in sibling_groups(sites) if name in [site.name for site in g.sites]]
    return result, group, sites


def multiply(site: Site, factor: np.ndarray) -> None:
    """Multiplies the weight, [c_in, c_out], by a factor that broadcasts against it."""
    w = (site.array() * factor).astype(np.float32)
    site.weight.const_value = ir.Tensor(np.ascontiguousarray(w.T) if site.transposed else w)


def apply(model: ir.Model, group: Group, sites: list[Site], fold: Fold | None) -> np.ndarray:
    """Scales the group's weights by numbers from 1/8 to 8 and takes that back where ``fold`` says."""
    s = np.exp2(np.random.default_rng(7).uniform(-3, 3, group.sites[0].c_in)).astype(np.float32)
    for site in group.sites:
        multiply(site, s[:, None])
    if fold is None:
        insert_division(model.graph, group, s)
        return s
    for site in sites:
        if site.weight in fold.weights:
            multiply(site, 1 / s)
    divide_vectors(model.graph, fold, s)
    return s


FOLDS = [
    pytest.param(models.siblings, "q", "vector", id="norm's vector"),
    pytest.param(models.layer_norm, "w", "vector", id="LayerNormalization's scale and bias"),
    pytest.param(rms_norm, "w", "vector", id="RMSNormalization's scale", marks=OPSET_23),
    pytest.param(models.constants, "w", "vector", id="vector in a Constant node"),
    pytest.param(lambda: scaled_by(vector()[None, None]), "w", "vector", id="vector of rank 3"),
    pytest.param(shared_vector, "first", "vector", id="vector that scales something else too"),
    pytest.param(linear_pair, "second", "weight", id="linear before"),
    pytest.param(lambda: linear_pair([node("Shape", "h", "n")]), "second", "weight", id="shape read too"),
    pytest.param(models.biased, "second", "vector and weight", id="linear before and bias"),
    pytest.param(vector_times_linear, "second", "weight", id="linear before times vector"),
    pytest.param(models.swiglu, "down", "weight", id="product of two"),
    pytest.param(residual, "w", "weight", id="sum of two linear"),
]

NOT_FOLDED = [
    pytest.param(models.mlp, "down", id="behind a relu"),
    pytest.param(models.swiglu, "gate", id="input of the model"),
    pytest.param(lambda: linear_pair([node("Relu", "h", "r")], ("y", "r")), "second", id="another node reads it"),
    pytest.param(lambda: linear_pair(outputs=("y", "h")), "second", id="output of the model"),
    pytest.param(read_in_branch, "second", id="a branch reads it"),
    pytest.param(lambda: scaled_by(np.array([2], np.float32)), "w", id="one number for all channels"),
    pytest.param(lambda: scaled_by(weight(HIDDEN, HIDDEN)), "w", id="a vector for each position"),
    pytest.param(lambda: scaled_by(weight(HIDDEN, 1)), "w", id="a number for each position"),
    pytest.param(lambda: models.biased(weight(1)), "second", id="bias of one number"),
    pytest.param(add_to_input, "w", id="sum with an input"),
    pytest.param(models.square, "second", id="linear times itself"),
    pytest.param(lambda: models.shared(same=True), "w", id="shared, one activation, an input"),
]


@pytest.mark.parametrize(("make", "name", "expected"), FOLDS)
def test_results_stay_the_same_with_the_division_folded(make, name, expected):
    proto = make()
    model, group, sites = opened(proto, name)
    fold = find_fold(group, sites)
    assert fold is not None
    assert str(fold) == expected
    count = len(list(model.graph))
    apply(model, group, sites, fold)
    assert len(list(model.graph)) == count
    check_same(proto, model)


@pytest.mark.parametrize(("make", "name"), NOT_FOLDED)
def test_results_stay_the_same_with_a_mul(make, name):
    proto = make()
    model, group, sites = opened(proto, name)
    assert find_fold(group, sites) is None
    count = len(list(model.graph))
    apply(model, group, sites, None)
    assert len(list(model.graph)) == count + 1
    check_same(proto, model)


@pytest.mark.parametrize("make", [models.siblings, lambda: models.shared(same=True)], ids=["siblings", "shared"])
def test_one_mul_serves_all_readers(make):
    proto = make()
    model, group, sites = opened(proto, "q" if make is models.siblings else "w")
    apply(model, group, sites, None)
    (mul,) = [n for n in model.graph if str(n.name).endswith("_awq_Mul")]
    assert {use.node for use in mul.outputs[0].uses()} == {n for site in group.sites for n in site.nodes}
    check_same(proto, model)


def check_same(proto: onnx.ModelProto, model: ir.Model) -> None:
    changed = ir.to_proto(model)
    onnx.checker.check_model(changed, full_check=True)
    feeds = {"x": tokens(2, HIDDEN, HIDDEN)}  # as many positions as channels: some vectors have one number for each
    before, after = run(proto, feeds), run(changed, feeds)
    assert all(relative(b, a) < TOLERANCE for a, b in zip(before, after, strict=True))


def test_what_is_excluded_takes_no_division():
    _, group, sites = opened(linear_pair(), "second", exclude=("first",))
    assert find_fold(group, sites) is None


def test_a_weight_that_two_nodes_read_takes_no_division():
    nodes = [
        node("MatMul", "x first", "h"),
        node("MatMul", "h second", "a"),
        node("MatMul", "x first", "b"),
        node("Add", "a b", "y"),
    ]
    weights = {"first": weight(HIDDEN, HIDDEN), "second": weight(HIDDEN, HIDDEN, seed=1)}
    _, group, sites = opened(build(nodes, weights, {"y": ACTIVATION}), "second")
    assert find_fold(group, sites) is None


def test_a_shared_weight_with_two_activations_has_no_fold():
    _, group, sites = opened(models.shared(), "w")
    assert find_fold(group, sites) is None


def test_half_precision_vectors_stay_half():
    nodes = [node("Mul", "x scale", "h"), node("MatMul", "h w", "y")]
    weights = {"scale": vector().astype(np.float16), "w": weight(HIDDEN, FFN, dtype=np.float16)}
    proto = build(nodes, weights, {"y": (*ACTIVATION[:2], FFN)}, dtype=TensorProto.FLOAT16)
    model, group, sites = opened(proto, "w")
    fold = find_fold(group, sites)
    assert fold is not None
    divide_vectors(model.graph, fold, np.full(HIDDEN, 2, np.float32))
    (halved,) = [v.const_value.numpy() for n, v in model.graph.initializers.items() if "scale" in n and v.const_value]
    assert halved.dtype == np.float16
    np.testing.assert_array_equal(halved, weights["scale"] / 2)


WHOLE = [
    pytest.param(models.layer_norm, "w", "vector", id="LayerNormalization's scale and bias"),
    pytest.param(models.biased, "second", "vector and weight", id="linear before and bias"),
    pytest.param(models.square, "second", "Mul", id="linear times itself"),
]


@pytest.mark.parametrize(("make", "name", "where"), WHOLE)
def test_awq_with_8_bits_gives_the_models_results(make, name, where, tmp_path):
    """At 8 bits almost nothing is lost to rounding, so a division in the wrong place shows."""
    proto = make()
    x = tokens(4, 10, HIDDEN)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, "awq_lite", [Batch({"x": x})], IntegerFormat(block_size=32, num_bits=8))
    layers = {layer.name: layer for layer in outcome.layers}
    assert layers[name].alpha is not None
    assert layers[name].fold == where
    (before,), (after,) = run(source, {"x": x}), run(target, {"x": x})
    assert relative(after, before) < 0.02


def shaped(siblings: onnx.ModelProto) -> onnx.ModelProto:
    """The siblings' sum in the shape of the activation that they read."""
    siblings.graph.node[-1].output[0] = "sum"
    siblings.graph.node.extend([node("Shape", "scaled", "dims"), node("Reshape", "sum dims", "y")])
    return siblings


@pytest.mark.parametrize(
    ("make", "vectors", "activation"),
    [
        pytest.param(lambda: shaped(models.siblings()), {"norm"}, "scaled", id="Mul"),
        pytest.param(models.attention, {"scale"}, "normed", id="LayerNormalization"),
    ],
)
def test_who_reads_the_shape_alone_does_not_keep_awq_from_the_norm(make, vectors, activation, tmp_path):
    proto, x = make(), {"x": tokens(4, 10, HIDDEN)}
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, "awq_lite", [Batch(x)], IntegerFormat(32, num_bits=8))
    siblings = [layer for layer in outcome.layers if layer.activation == activation]
    assert [(layer.name, layer.fold) for layer in siblings] == [(name, "vector") for name in "qkv"]
    assert all(layer.alpha is not None for layer in siblings)
    written = onnx.load(target)
    assert {name for name in initializers(written) if name.endswith("_awq")} == {f"{name}_awq" for name in vectors}
    assert vectors.isdisjoint(initializers(written))
    readers = [n.op_type for n in written.graph.node if activation in n.input]
    assert sorted(readers) == ["MatMul"] * 3 + ["Shape"]
    assert relative(run(target, x)[0], run(source, x)[0]) < 0.02


def half_chain(size: float = 1, largest: float = 1) -> onnx.ModelProto:
    """A vector and two linear layers in float16: weights about ``size``, one entry of the vector ``largest``."""
    nodes = [node("Mul", "x scale", "h"), node("MatMul", "h first", "i"), node("MatMul", "i second", "y")]
    uneven = np.where(np.arange(HIDDEN) % 16, 1, 10)
    weights = {"scale": vector(), "first": size * weight(HIDDEN, HIDDEN) * uneven, "second": weight(HIDDEN, HIDDEN)}
    weights["scale"][5] = largest
    half = {name: w.astype(np.float16) for name, w in weights.items()}
    return build(nodes, half, {"y": ACTIVATION}, dtype=TensorProto.FLOAT16)


def quantize_half(proto: onnx.ModelProto, folder: Path, x: np.ndarray) -> tuple[Path, Outcome]:
    target = folder / "out.onnx"
    return target, quantize(save(proto, folder), target, "awq_lite", [Batch({"x": x})])


@pytest.mark.parametrize(
    ("size", "where"), [pytest.param(1, "weight", id="weight"), pytest.param(2e-3, "Mul", id="scales too small for it")]
)
def test_scaled_half_precision_files_give_what_their_codes_stand_for(size, where, tmp_path):
    proto, x = half_chain(size), tokens(4, 10, HIDDEN).astype(np.float16)
    target, outcome = quantize_half(proto, tmp_path, x)
    assert [(x.name, x.fold) for x in outcome.layers] == [("first", "vector"), ("second", where)]
    for layer in outcome.layers:
        assert layer.alpha is not None
        assert layer.loss is not None and layer.loss_rtn is not None and layer.loss < layer.loss_rtn
        assert layer.nbytes == HIDDEN * HIDDEN * (4 + 16 / 32) / 8
    assert outcome.bits_per_weight == 4 + 16 / 32
    written = onnx.load(target)
    held, weights = initializers(written), dequantized(written)
    assert {held[name].dtype for name in held if "quantized" not in name} == {np.dtype(np.float16)}
    weights["scale"] = held["scale_awq"]
    if where == "weight":
        assert held["first_scale"].min() >= np.finfo(np.float16).tiny
    else:
        weights["second"] *= held["i_awq_factor"][:, None].astype(np.float64)
    (got,), (expected,), (before,) = (run(m, {"x": x}) for m in (target, with_weights(proto, weights), proto))
    assert got.dtype == np.float16
    assert relative(got, expected) < 2e-3
    assert relative(got, before) < 0.2


def test_half_precision_vectors_that_would_leave_their_range_keep_the_mul(tmp_path):
    """A channel that calibration never sees has a scale far below the others'."""
    x = tokens(4, 40, HIDDEN).astype(np.float16)
    x[..., 5] = 0
    target, outcome = quantize_half(half_chain(largest=2000), tmp_path, x)
    assert np.isfinite(run(target, {"x": x})[0]).all()
    assert outcome.layers[0].fold == "Mul"
