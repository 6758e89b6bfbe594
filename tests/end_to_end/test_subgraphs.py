"""Weights that nodes in If and Loop read: rounded to nearest, written where they are read."""

import numpy as np
import onnx
import pytest

from jaxq.files.model_file import load_model
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.forms.registry import FORMS
from jaxq.harness.command import _notes
from jaxq.pipeline.job import Gather
from jaxq.readback.inspection import inspect_model
from jaxq.readback.weights import read_weights
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.forms import in_place, run_form, skip_old
from tests.support.models import HIDDEN, tokens
from tests.support.running import RUNTIME, graphs, quantize, relative, run, save, with_weights
from tests.support.subgraph_models import looped, merged
from tests.support.unpacked import dequantized

X = tokens(5, HIDDEN)
BRANCHES = [{"x": X, "c": np.array(c)} for c in (True, False)]
NESTED = "in a subgraph: rounded to nearest"


def cases() -> list:
    found = []
    for form, held in FORMS.items():
        dtype = next(iter(held.block_sizes))
        fmt = make_format({"int2": "int4"}.get(dtype, dtype), 32 if 32 in held.block_sizes[dtype] else None)
        found += [pytest.param(form, fmt, op, id=f"{form} {op}") for op in ("MatMul", "Gemm")]
    return found


@pytest.mark.parametrize(("form", "fmt", "op"), cases())
def test_both_branches_give_what_the_codes_stand_for(form, fmt, op, tmp_path):
    skip_old(form, fmt)
    proto = merged(op)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, form=form, fmt=fmt)
    notes = {layer.name: (layer.note, len(layer.nodes)) for layer in outcome.layers}
    assert notes == {
        "all": ("", 3),  # without notes: rounding to nearest does no less here
        "both": ("", 3),
        "own": ("", 1),
        "deep_w": ("", 1),
        "last": ("", 1),
    }
    assert {layer.name for layer in outcome.layers if layer.nested} == set(notes) - {"last"}
    assert {d.name for d in outcome.skipped} <= {"bias"}
    onnx.checker.check_model(str(target), full_check=True)
    weights = {w.name: w.dequantize() for w in read_weights(load_model(target))}
    assert set(weights) == set(notes)
    weights = {name: w.T if op == "Gemm" else w for name, w in weights.items()}
    for feeds in BRANCHES:
        expected = run(with_weights(proto, weights), feeds)[0]
        assert relative(run_form(form, target, feeds)[0], expected) < 2e-6


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
def test_new_tensors_lie_where_they_are_read_under_names_of_their_own(form, tmp_path):
    target = tmp_path / "out.onnx"
    outcome = quantize(save(merged(), tmp_path), target, form=form)
    written = onnx.load(target)
    names = [t.name for graph in graphs(written.graph) for t in graph.initializer]
    assert len(names) == len(set(names))
    for graph in graphs(written.graph):
        own = {t.name for t in graph.initializer}
        for each in graph.node:
            if each.op_type in ("DequantizeLinear", "MatMulNBits"):
                codes = each.input[0] if each.op_type == "DequantizeLinear" else each.input[1]
                assert codes in own
    copies = [n for n in names if n.startswith("all_quantized")]
    assert len(copies) == 3
    each = HIDDEN * HIDDEN * 5 / 8
    assert {layer.name: layer.nbytes / each for layer in outcome.layers} == {
        **{"all": 3, "both": 3, "own": 1, "deep_w": 1, "last": 1}
    }
    weights = dequantized(written)  # asserts that all copies are the same
    for feeds in BRANCHES:
        assert relative(run(target, feeds)[0], run(in_place(merged(), weights), feeds)[0]) < 2e-6


@pytest.mark.parametrize("form", ["dq", "qdq", "matmulnbits", "column_major"])
def test_a_loop_reads_its_weights_in_every_round(form, tmp_path):
    proto = looped()
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, form=form)
    assert {layer.name: layer.nested for layer in outcome.layers} == {"inner": True, "outer": True}
    onnx.checker.check_model(str(target), full_check=True)
    weights = {w.name: w.dequantize() for w in read_weights(load_model(target))}
    for times in (0, 1, 4):
        feeds = {"x": X, "times": np.array(times)}
        assert relative(run(target, feeds)[0], run(with_weights(proto, weights), feeds)[0]) < 2e-6


@pytest.mark.parametrize("method", ["awq_lite", "awq_full", "best"])
def test_what_calibration_does_not_see_is_rounded_to_nearest(method, tmp_path):
    """The main graph's reader gives moments of a weight that branches read too: clips, but no scale."""
    proto = merged()
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    batches = [Batch({"x": tokens(300, HIDDEN), "c": np.array(c)}) for c in (True, False)]
    fmt = IntegerFormat(32, 3)
    outcome = quantize(source, target, method, batches, fmt)
    layers = {layer.name: layer for layer in outcome.layers}
    for name in ("both", "own", "deep_w"):
        assert (layers[name].loss, layers[name].alpha, layers[name].clip_min) == (None, None, 1)
        assert layers[name].note == NESTED
    assert layers["all"].note == ("" if method == "best" else "in a subgraph too: not scaled")
    (sentence,) = [note for note in _notes(outcome) if "calibration does not see" in note]
    assert sentence.startswith("4 weights" if layers["all"].note else "3 weights")
    assert layers["all"].loss is not None and layers["all"].alpha is None
    assert (layers["all"].clip_min < 1) == (method != "awq_lite")
    assert layers["last"].loss is not None
    for feeds in BRANCHES:
        assert relative(run(target, feeds)[0], run(source, feeds)[0]) < 0.6


def test_initializers_of_one_name_in_two_branches_are_two_weights(tmp_path):
    parts = []
    for i, out in enumerate("te"):
        w = onnx.numpy_helper.from_array(models.weight(HIDDEN, HIDDEN, seed=i), "w")
        nodes = [models.node("MatMul", "x w", out)]
        parts.append(onnx.helper.make_graph(nodes, out, [], [models.value(out, ("n", HIDDEN))], [w]))
    inputs = [models.value("x", ("n", HIDDEN)), models.value("c", (), onnx.TensorProto.BOOL)]
    nodes = [models.node("If", "c", "y", then_branch=parts[0], else_branch=parts[1])]
    source = save(models.build(nodes, {}, {"y": ("n", HIDDEN)}, inputs), tmp_path)
    outcome = quantize(source, tmp_path / "out.onnx")
    assert sorted(layer.name for layer in outcome.layers) == ["w", "w_1"]
    for feeds in BRANCHES:
        assert 0.01 < relative(run(tmp_path / "out.onnx", feeds)[0], run(source, feeds)[0]) < 0.15


def test_a_table_in_a_branch_is_quantized_where_asked_for(tmp_path):
    looked = onnx.helper.make_graph(
        [models.node("Gather", "table ids", "a")], "a", [], [models.value("a", ("n", HIDDEN))]
    )
    plain = onnx.helper.make_graph(
        [models.node("Gather", "other ids", "b")], "b", [], [models.value("b", ("n", HIDDEN))]
    )
    nodes = [models.node("If", "c", "y", then_branch=looked, else_branch=plain)]
    inputs = [models.value("ids", ("n",), onnx.TensorProto.INT64), models.value("c", (), onnx.TensorProto.BOOL)]
    weights = {"table": models.weight(40, HIDDEN), "other": models.weight(40, HIDDEN, seed=1)}
    proto = models.build(nodes, weights, {"y": ("n", HIDDEN)}, inputs)
    source = save(proto, tmp_path)
    for form in ("dq", "matmulnbits"):
        target = tmp_path / f"{form}.onnx"
        quantize(source, target, form=form, gather=Gather(1, IntegerFormat(32)))
        held = dequantized(onnx.load(target))
        for c in (True, False):
            feeds = {"ids": np.array([3, 39]), "c": np.array(c)}
            assert relative(run(target, feeds)[0], run(with_weights(proto, held), feeds)[0]) < 1e-6


def test_inspect_finds_weights_of_subgraphs(tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(merged(), tmp_path), target)
    inspection = inspect_model(target)
    assert {w.name: w.copies for w in inspection.weights} == {"all": 3, "both": 3, "own": 1, "deep_w": 1, "last": 1}
    assert not inspection.unread


def operators_inside(path) -> list[str]:
    """Operators in the branches of the model as onnxruntime runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _, *inner = graphs(onnx.load(options.optimized_model_filepath).graph)
    return [n.op_type for graph in inner for n in graph.node]


@pytest.mark.skipif(RUNTIME < (1, 31), reason="measured for the newest onnxruntime")
def test_codes_in_subgraphs_are_fused(tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(merged(), tmp_path), target)
    inside = operators_inside(target)
    # All but the product before the inner If, which it leaves as it is.
    assert inside.count("MatMulNBits") == 6 and inside.count("DequantizeLinear") == 1
