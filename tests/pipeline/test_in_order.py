"""method=best: every weight on the activations of the model whose earlier weights are quantized already."""

import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from jaxq.calibration.windows import plan_windows
from jaxq.formats.integers import IntegerFormat
from jaxq.graph.prepare import prepare
from jaxq.graph.residuals import residual_of
from jaxq.graph.sites import find_sites
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.gptq import damp, gptq_round
from jaxq.methods.registry import MethodSpec
from jaxq.methods.targets import corrected_target
from jaxq.pipeline.clock import Clock
from jaxq.pipeline.job import Job
from jaxq.pipeline.quantize import quantize_model
from jaxq.runtime.batches import Batch
from tests.pipeline.test_resume import Interrupted, stop_after
from tests.support.decoder import decoder_batches
from tests.support.models import ACTIVATION, HIDDEN, build, node, tokens, value, weight
from tests.support.running import initializers, quantize, relative, run, save
from tests.support.unpacked import dequantized

FMT = IntegerFormat(32, full_range=True)
SPEC = MethodSpec("best", FMT, ridge=120.0)


def residual_blocks() -> onnx.ModelProto:
    """Two blocks ``x + relu(x a) b``."""
    nodes, weights, x = [], {}, "x"
    for i in range(2):
        nodes += [
            node("MatMul", f"{x} a{i}", f"h{i}"),
            node("Relu", f"h{i}", f"r{i}"),
            node("MatMul", f"r{i} b{i}", f"p{i}"),
            node("Add", f"{x} p{i}", f"x{i}"),
        ]
        weights |= {f"a{i}": weight(HIDDEN, 96, seed=i), f"b{i}": weight(96, HIDDEN, seed=10 + i)}
        x = f"x{i}"
    return build(nodes, weights, {x: ACTIVATION})


def solved(w: np.ndarray, x: np.ndarray, x_float: np.ndarray, lacking: np.ndarray) -> np.ndarray:
    """What a weight becomes, from the activations themselves."""
    h = jnp.asarray(x.T @ x / len(x), jnp.float32)
    drift_in = jnp.asarray(x.T @ (x_float - x) / len(x), jnp.float32)
    drift_out = jnp.asarray(x.T @ lacking / len(x), jnp.float32)
    target = corrected_target(jnp.asarray(w), h, drift_in, drift_out, SPEC.ridge / len(x))
    shrinkage = SPEC.shrinkage / (SPEC.shrinkage + len(x))
    h = jnp.where(jnp.eye(len(h), dtype=bool), h, (1 - shrinkage) * h)
    scales = search_block_scales(target, damp(h, SPEC.damping), FMT)
    return np.asarray(gptq_round(target, h, scales, FMT, SPEC.damping, SPEC.descent_passes), np.float64)


def by_hand(weights: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """Both models in numpy, one weight after the other."""
    found, exact, rough = {}, x.reshape(-1, HIDDEN).astype(np.float64), x.reshape(-1, HIDDEN).astype(np.float64)
    for i in range(2):
        a, b = f"a{i}", f"b{i}"
        found[a] = solved(weights[a], rough, exact, np.zeros((len(x.reshape(-1, HIDDEN)), 96)))
        r_exact, r_rough = np.maximum(exact @ weights[a], 0), np.maximum(rough @ found[a], 0)
        found[b] = solved(weights[b], r_rough, r_exact, exact - rough)
        exact, rough = exact + r_exact @ weights[b], rough + r_rough @ found[b]
    return found


@pytest.mark.long
def test_each_weight_is_solved_on_what_the_ones_before_it_left(tmp_path):
    proto, x = residual_blocks(), tokens(6, 40, HIDDEN)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target, "best", [Batch({"x": x[:4]}), Batch({"x": x[4:]})], FMT, ridge=SPEC.ridge)
    got, want = dequantized(onnx.load(target)), by_hand(initializers(proto), x)
    for name, values in want.items():
        # Sums of float32 in another order move a code here and there, and what follows in its column.
        assert (np.abs(got[name] - values) < 1e-4 * np.abs(values).max()).mean() > 0.97, name
        assert relative(got[name], values) < 0.03


def test_the_output_is_nearer_than_without_propagation(tmp_path):
    proto, x = residual_blocks(), tokens(12, 64, HIDDEN)
    source = save(proto, tmp_path)
    errors = {}
    for method in ("rtn_dq", "gptq", "best"):
        quantize(source, tmp_path / f"{method}.onnx", method, [Batch({"x": x[:8]})], FMT)
        feeds = {"x": x[8:]}  # held out
        errors[method] = relative(*run(tmp_path / f"{method}.onnx", feeds), *run(source, feeds))
    assert errors["best"] < errors["gptq"] < errors["rtn_dq"]


def test_a_residual_of_another_width_is_left_out(tmp_path):
    """The sum with ``g`` [..., 1] makes it wide; a sibling's residual is wide already."""
    nodes = [
        *(node("MatMul", "x a", "h"), node("Relu", "h", "r"), node("MatMul", "x g", "m"), node("MatMul", "r b", "p")),
        *(node("Add", "p m", "y0"), node("MatMul", "r c", "q"), node("Add", "q x", "y1"), node("Add", "y0 y1", "y")),
    ]
    weights = {"a": weight(HIDDEN, 96, seed=1), "g": weight(HIDDEN, 1, seed=5)}
    weights |= {"b": weight(96, HIDDEN, seed=2), "c": weight(96, HIDDEN, seed=3)}
    source, x = save(build(nodes, weights, {"y": ACTIVATION}), tmp_path), tokens(4, 64, HIDDEN)
    errors = {}
    for method in ("rtn_dq", "best"):
        quantize(source, tmp_path / f"{method}.onnx", method, [Batch({"x": x})], FMT)
        errors[method] = relative(*run(tmp_path / f"{method}.onnx", {"x": x}), *run(source, {"x": x}))
    assert errors["best"] < 0.8 * errors["rtn_dq"]


def sites_of(proto: onnx.ModelProto):
    model = ir.from_proto(proto)
    prepare(model)
    return model, find_sites(model.graph)[0]


def test_a_window_ends_before_each_step():
    model, sites = sites_of(residual_blocks())
    steps = {n for site in sites for n in site.nodes}
    windows = plan_windows(model.graph, list(model.graph.outputs), 1 << 30, steps)
    assert [n.name for w in windows for n in w.nodes] == [n.name for n in model.graph]
    assert [sum(n in steps for n in w.nodes) for w in windows] == [1, 1, 1, 1]
    assert all(w.nodes[0] in steps for w in windows)
    assert len(plan_windows(model.graph, list(model.graph.outputs), 1 << 30)) == 1


def test_siblings_are_one_step():
    nodes = [
        *(node("MatMul", "x a", "p"), node("Relu", "p", "r"), node("MatMul", "r c", "q")),
        *(node("MatMul", "x b", "s"), node("Add", "q s", "y")),
    ]
    weights = {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate("abc")}
    model, sites = sites_of(build(nodes, weights, {"y": ACTIVATION}))
    windows = plan_windows(model.graph, list(model.graph.outputs), 1 << 30, {n for s in sites for n in s.nodes})
    assert [sorted(str(v.name) for v in w.weights) for w in windows] == [["a", "b"], ["c"]]


def test_what_a_product_is_added_to():
    _, sites = sites_of(residual_blocks())
    found = {site.name: residual_of(site) for site in sites}
    assert found["a0"] is None
    assert found["a1"] is None
    b0, b1 = found["b0"], found["b1"]
    assert b0 is not None and (b0.other.name, b0.sum.name) == ("x", "x0")
    assert b1 is not None and (b1.other.name, b1.sum.name) == ("x0", "x1")


@pytest.mark.parametrize(
    ("between", "found"),
    [
        ([node("Add", "p bias", "q"), node("Add", "q x", "y")], "x"),
        ([node("Add", "bias p", "q"), node("Identity", "q", "z"), node("Add", "x z", "y")], "x"),
        ([node("Relu", "p", "q"), node("Add", "q x", "y")], None),
        ([node("Add", "p x", "q"), node("Mul", "q p", "y")], None),
        ([node("SkipSimplifiedLayerNormalization", "p x gamma", "y", domain="com.microsoft")], "x"),
        ([node("SkipSimplifiedLayerNormalization", "x p gamma", "y", domain="com.microsoft")], "x"),
    ],
    ids=["bias", "bias and Identity", "activation between", "read twice", "skip norm", "skip norm, turned"],
)
def test_ways_to_the_sum(between, found):
    weights = {"w": weight(HIDDEN, HIDDEN), "bias": np.ones(HIDDEN, np.float32), "gamma": np.ones(HIDDEN, np.float32)}
    used = {i for n in between for i in n.input} | {"w"}
    held = [numpy_helper.from_array(array, name) for name, array in weights.items() if name in used]
    nodes = [node("MatMul", "x w", "p"), *between]
    graph = helper.make_graph(nodes, "small", [value("x", ACTIVATION)], [value("y", ACTIVATION)], held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    _, sites = sites_of(helper.make_model(graph, opset_imports=opsets))
    residual = residual_of(sites[0])
    assert (None if residual is None else residual.other.name) == found


def job(source: Path, folder: Path, name: str) -> Job:
    target = folder / f"{name}.onnx"
    return Job(source, target, MethodSpec("best", IntegerFormat(32)), exclude=("*lm_head*",), cache=folder / "cache")


@pytest.mark.long
@pytest.mark.parametrize("steps", [1, 7, 17, 30])
def test_a_run_that_was_stopped_goes_on(steps, decoder, tmp_path):
    batches = decoder_batches()
    whole = quantize_model(job(decoder, tmp_path, "whole"), batches)
    again = job(decoder, tmp_path, "again")
    with pytest.raises(Interrupted):
        quantize_model(again, batches, stop_after("calibrate and search", steps))
    outcome = quantize_model(again, batches)
    assert len(outcome.windows) == len(whole.windows) - (steps - 1) // len(batches)
    assert outcome.layers == whole.layers
    assert again.target.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert not list((tmp_path / "cache").glob("run-*"))


def test_each_window_runs_once_a_batch_in_both_models(decoder, tmp_path):
    """Two forward passes in all, however many weights there are."""
    batches = decoder_batches()
    outcome = quantize_model(job(decoder, tmp_path, "out"), batches)
    assert all(window.runs == len(batches) for window in outcome.windows)
    seconds = {phase.name: phase.seconds for phase in outcome.phases}
    assert list(seconds) == ["load", "calibrate", "search", "write"]
    assert seconds["search"] > 0 and seconds["calibrate"] >= sum(window.seconds for window in outcome.windows) > 0
    assert len(outcome.windows) <= 4 * 3 + 2  # four steps a layer, three layers


def test_padding_does_not_count(decoder, tmp_path):
    """Other ids in the padding of the calibration data change nothing."""
    files = []
    for fill in (0, 5):
        target = job(decoder, tmp_path / str(fill), "out")
        quantize_model(target, decoder_batches(fill=fill))
        files.append(target.target.read_bytes())
    assert files[0] == files[1]


def test_phases_within_phases():
    """An inner phase counts for itself alone, however often it comes."""
    clock = Clock()
    with clock.phase("outer"):
        for _ in range(2):
            time.sleep(0.02)
            with clock.phase("inner"):
                time.sleep(0.1)
    outer, inner = clock.phases
    assert (outer.name, inner.name) == ("outer", "inner")
    assert inner.seconds >= 0.2 and 0.04 <= outer.seconds < 0.2
