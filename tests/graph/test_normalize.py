"""Graphs brought to the plain shape: results stay, weights are found, and no number is read before it is needed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from jaxq.files.model_file import load_model
from jaxq.graph.normalize.views import View, restore_views
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites, unmatched
from jaxq.runtime.batches import Batch
from tests.support import normalize_models
from tests.support.models import ACTIVATION, FFN, HIDDEN, build, node, tokens, value, weight
from tests.support.normalize_models import NORMALIZED
from tests.support.prepared import FUNCTIONS, OPSETS, X, prepared, with_values
from tests.support.running import quantize, relative, run, save
from tests.support.unpacked import dequantized


@pytest.mark.parametrize("name", NORMALIZED)
def test_results_stay_bit_for_bit(name):
    """Without the optimizer, which fuses other nodes in each."""
    source = NORMALIZED[name].make(18)
    result = ir.to_proto(prepared(source))
    onnx.checker.check_model(result, full_check=True)
    for a, b in zip(run(source, X, optimize=False), run(result, X, optimize=False), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", [n for n in NORMALIZED if n not in FUNCTIONS])
def test_each_opset_gives_what_the_codes_stand_for(name, opset, form, tmp_path):
    source, target = NORMALIZED[name].make(opset), tmp_path / "out.onnx"
    outcome = quantize(save(source, tmp_path), target, form=form)
    onnx.checker.check_model(str(target), full_check=form == "dq")
    weights = dequantized(onnx.load(target))
    assert {layer.name for layer in outcome.layers} == set(weights) == set(NORMALIZED[name].values)
    values = {v: weights[w] for w, names in NORMALIZED[name].values.items() for v in names.split()}
    assert relative(run(target, X)[0], run(with_values(source, values), X)[0]) < 2e-6


def test_views_are_sites_with_names_that_stay(tmp_path):
    names = [[site.name for site in find_sites(prepared(normalize_models.experts()).graph)[0]] for _ in range(2)]
    assert names[0] == names[1] == [f"stack_{i}_transposed" for i in range(3)]


@pytest.mark.parametrize("pattern", ["w", "w_transposed", "/y/*"])
def test_views_are_excluded_by_either_name(pattern):
    graph = prepared(normalize_models.transposed()).graph
    sites, skipped = find_sites(graph, (pattern,))
    assert not sites
    assert [(d.name, d.reason) for d in skipped] == [("w_transposed", f"excluded by the pattern {pattern!r}")]
    assert unmatched(graph, (pattern,)) == []


def test_a_name_that_is_taken_is_not_given_again():
    source = normalize_models.transposed()
    source.graph.node.append(node("Neg", "x", "w_transposed"))
    source.graph.output.append(value("w_transposed", ACTIVATION))
    model = prepared(source)
    assert [site.name for site in find_sites(model.graph)[0]] == ["w_transposed_0"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_nodes_and_constants_that_nothing_reads_any_more_are_gone():
    source = normalize_models.packed()
    source.graph.initializer.append(numpy_helper.from_array(weight(4, 4), "unread"))
    graph = prepared(source).graph
    assert [n.op_type for n in graph] == ["MatMul"] * 3 + ["Concat"]
    assert set(graph.initializers) == {*NORMALIZED["packed"].values, "unread"}
    assert {d.name: d.reason for d in find_sites(graph)[1]} == {"unread": "no node reads it"}


def tied(*between: onnx.NodeProto, last: str = "table") -> onnx.ModelProto:
    ids = value("ids", ("batch", "sequence"), TensorProto.INT64)
    nodes = [*between, node("Gather", "table ids", "e"), node("MatMul", "e w", "h")]
    nodes += [node("Transpose", last, "head", perm=[1, 0]), node("MatMul", "h head", "y")]
    weights = {"table": weight(32, HIDDEN), "w": weight(HIDDEN, HIDDEN)}
    return build(nodes, weights, {"y": ("batch", "sequence", 32)}, [ids])


@pytest.mark.parametrize("between", [(), (node("Identity", "table", "copy"),)], ids=["directly", "through Identity"])
def test_a_table_that_is_tied_stays_as_it_is(between):
    graph = prepared(tied(*between, last="copy" if between else "table")).graph
    assert [n.op_type for n in graph] == ["Gather", "MatMul", "Transpose", "MatMul"]
    table = graph.initializers["table"]
    assert {(n.op_type, i) for n, i in table.uses()} == {("Gather", 0), ("Transpose", 0)}


@pytest.mark.parametrize(
    ("more", "outputs"),
    [
        pytest.param([node("Neg", "w", "n")], ["n"], id="another operator"),
        pytest.param([], ["wt"], id="an output on the way"),
        pytest.param([node("Unsqueeze", "w axes", "u"), node("Expand", "u big", "n")], ["n"], id="a broadcast"),
        pytest.param([node("MatMul", "wt w", "n")], ["n"], id="a first input"),
    ],
)
def test_what_something_else_reads_too_is_left_alone_with_a_reason(more, outputs):
    nodes = [node("Transpose", "w", "wt", perm=[1, 0]), node("MatMul", "x wt", "y"), *more]
    weights = {"w": weight(FFN, HIDDEN), "axes": np.array([0]), "big": np.array([2, FFN, HIDDEN])}
    shapes = {name: [f"{name}{i}" for i in range(3 if name == "n" and len(more) == 2 else 2)] for name in outputs}
    graph = prepared(build(nodes, weights, {"y": (*ACTIVATION[:2], FFN), **shapes})).graph
    assert "Transpose" in [n.op_type for n in graph]
    sites, skipped = find_sites(graph)
    assert not sites
    assert "w" in [d.name for d in skipped]


def test_no_tensor_is_read_before_it_is_needed():
    def fail() -> ir.TensorProtocol:
        raise AssertionError("a tensor was read")

    for name in set(NORMALIZED) - {"transposed_by_function"}:  # its second weight lies in a Constant node
        model = ir.from_proto(NORMALIZED[name].make(18))
        for v in model.graph.initializers.values():
            t = v.const_value
            if t is not None and t.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) and t.size > 1:
                v.const_value = ir.LazyTensor(fail, t.dtype, ir.Shape(t.shape.numpy()), name=v.name)
        prepare(model)
        assert find_sites(model.graph)[0], name


def mapped(path: Path) -> bool:
    """Whether this process has a file in its memory."""
    return str(path) in Path("/proc/self/maps").read_text()


def test_views_of_one_file_can_be_read_side_by_side(tmp_path):
    """Each in its own thread, as the pipeline's searches do."""
    model = load_model(save(normalize_models.experts(), tmp_path, external=True))
    prepare(model)
    sites, _ = find_sites(model.graph)
    expected = weight(3, FFN, HIDDEN).transpose(0, 2, 1)
    with ThreadPoolExecutor(6) as pool:
        for i, array in pool.map(lambda i: (i % 3, sites[i % 3].array()), range(300)):
            np.testing.assert_array_equal(array, expected[i])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_views_of_a_file_leave_nothing_of_it_in_memory(tmp_path):
    path = save(normalize_models.experts(), tmp_path, external=True)
    model = load_model(path)
    prepare(model)
    sites, _ = find_sites(model.graph)
    expected = weight(3, FFN, HIDDEN).transpose(0, 2, 1)
    for i, site in enumerate(sites):
        array = site.array()
        np.testing.assert_array_equal(array, expected[i])
        assert array.base is None or isinstance(array.base, np.ndarray)
    assert not mapped(tmp_path / "model.onnx.weights")


@pytest.mark.parametrize("external_above", [0, 1 << 30], ids=["to external data", "to one file"])
def test_what_is_not_quantized_is_written_as_it_was(external_above, tmp_path):
    """A weight in float16 does not become one in float32 because it was looked at."""
    nodes = []
    for i in range(3):
        nodes += [node("Cast", f"w{i}", f"f{i}", to=TensorProto.FLOAT), node("Transpose", f"f{i}", f"t{i}")]
        nodes += [node("MatMul", f"x t{i}", f"y{i}")]
    nodes.append(node("Sum", "y0 y1 y2", "y"))
    weights = {f"w{i}": weight(FFN, HIDDEN, seed=i, dtype=np.float16) for i in range(3)}
    source = save(normalize_models.linear(nodes, weights, 21), tmp_path)
    quantize(source, tmp_path / "out" / "out.onnx", exclude=("w[12]*",), external_above=external_above)
    onnx.checker.check_model(str(tmp_path / "out" / "out.onnx"), full_check=True)
    written = onnx.load(tmp_path / "out" / "out.onnx")
    kept = {t.name: t for t in written.graph.initializer if t.name in weights}
    assert sorted(kept) == ["w1", "w2"]
    for name, tensor in kept.items():
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights[name])
    names = [n.name for n in written.graph.node]
    assert {n.name for n in onnx.load(source).graph.node[3:]} <= set(names)
    got = run(tmp_path / "out" / "out.onnx", X)[0]
    given = with_values(onnx.load(source), {"t0": dequantized(written)["w0_float32_transposed"]})
    assert relative(got, run(given, X)[0]) < 2e-6


@pytest.mark.parametrize("name", [n for n in NORMALIZED if n not in FUNCTIONS])
def test_views_put_back_compute_the_same(name):
    source = NORMALIZED[name].make(18)
    model = prepared(source)
    restore_views(model)
    result = ir.to_proto(model)
    assert not any(isinstance(v.const_value, View) for v in model.graph.initializers.values())
    onnx.checker.check_model(result, full_check=True)
    assert sum(t.ByteSize() for t in result.graph.initializer) <= source.ByteSize()
    np.testing.assert_array_equal(run(result, X, optimize=False)[0], run(source, X, optimize=False)[0])


def test_weights_of_subgraphs_and_unnamed_nodes():
    source = normalize_models.unnamed_branches()
    model = prepared(source)
    assert all(n.name for n in model.graph.all_nodes())
    assert set(model.graph.initializers) >= {"w_transposed", "last", "condition"}
    np.testing.assert_array_equal(run(ir.to_proto(model), X)[0], run(source, X)[0])


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
def test_sparse_weights_are_quantized_as_dense_ones(form, tmp_path):
    source, target = normalize_models.sparse_weights(), tmp_path / "out.onnx"
    outcome = quantize(save(source, tmp_path), target, form=form)
    assert [layer.name for layer in outcome.layers] == ["w", "v"]
    given = with_values(source, dequantized(onnx.load(target)))
    assert relative(run(target, X)[0], run(given, X)[0]) < 2e-6


@pytest.mark.parametrize("name", NORMALIZED)
def test_awq_sees_the_activations_of_each(name, tmp_path):
    source, target = NORMALIZED[name].make(18), tmp_path / "out.onnx"
    outcome = quantize(save(source, tmp_path), target, "awq_lite", [Batch({"x": tokens(4, 10, HIDDEN)})])
    assert all(x.loss is not None and x.loss_rtn is not None for x in outcome.layers)
    assert all((x.loss or 0) <= (x.loss_rtn or 0) * (1 + 1e-6) for x in outcome.layers)
    assert relative(run(target, X)[0], run(source, X)[0]) < 0.25
