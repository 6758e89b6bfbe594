"""Every tensor of floats in a file is in the report, once: quantized, or skipped with a reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxq.errors import JaxqError
from tests.support import models, normalize_models, subgraph_models
from tests.support.models import FFN, HIDDEN, MODELS, build, node, tokens, value, vector, weight
from tests.support.normalize_models import NORMALIZED, WIDE, function, ir_version, linear, with_functions
from tests.support.running import initializers, quantize, relative, run, save

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
VECTOR = "a vector (bias, norm or constant)"
REMOVED = "no output of the model depends on it: removed"
UNREAD = "no node reads it"
X = {"x": tokens(2, 6, HIDDEN)}


def float_tensors(model: onnx.ModelProto) -> Counter[str]:
    """Names of all tensors of floats in a file, but for scalars and vectors of one number or none."""
    found = Counter(_of_graph(model.graph))
    for each in model.functions:
        found.update(f"{each.name}/{name}" for name in _of_nodes(each.node))
    return found


def _of_graph(graph: onnx.GraphProto) -> Iterator[str]:
    for tensor in graph.initializer:
        yield from _counted(tensor.name, tensor.data_type, list(tensor.dims))
    for sparse in graph.sparse_initializer:
        yield from _counted(sparse.values.name, sparse.values.data_type, list(sparse.dims))
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for each in nodes:
        for attribute in each.attribute:
            for graph in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                yield from _of_graph(graph)
            if each.op_type != "Constant":
                continue
            if attribute.name == "value":
                yield from _counted(each.output[0], attribute.t.data_type, list(attribute.t.dims))
            if attribute.name == "sparse_value":
                kind = attribute.sparse_tensor.values.data_type
                yield from _counted(each.output[0], kind, list(attribute.sparse_tensor.dims))
            if attribute.name == "value_floats":
                yield from _counted(each.output[0], TensorProto.FLOAT, [len(attribute.floats)])


def _counted(name: str, dtype: int, shape: list[int]) -> Iterator[str]:
    if dtype in FLOATS and (len(shape) > 1 or np.prod(shape) > 1):
        yield name


def reported(source: onnx.ModelProto, folder: Path, form: str = "dq") -> tuple[Counter[str], dict[str, str]]:
    """Names in the report of a run, and the reasons of skipped weights."""
    outcome = quantize(save(source, folder), folder / "out.onnx", form=form)
    names = Counter([layer.name for layer in outcome.layers] + [d.name for d in outcome.skipped])
    return names, {d.name: d.reason for d in outcome.skipped}


# What of these the operators of older opsets cannot say.
NEWER = {"siblings": 18, "gathered_moe": 18, "layer_norm": 17, "attention": 17}
NO_MATRIX = {"convolution", "stacked"}
NOTHING_LEFT = {"gemm_mixed", "weight_as_output", "double"}
BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{name: make for name, make in MODELS.items() if name not in NOTHING_LEFT},
    "merged": subgraph_models.merged,
    "merged Gemm": lambda: subgraph_models.merged("Gemm"),
    "looped": subgraph_models.looped,
    "tied": models.tied,
}


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_tensor_is_listed_once(name, opset, form, tmp_path, monkeypatch):
    if opset < NEWER.get(name, 0) or (form == "matmulnbits" and name in NO_MATRIX):
        pytest.skip("no such model")
    assert models.build.__kwdefaults__ is not None
    monkeypatch.setitem(models.build.__kwdefaults__, "opset", opset)
    monkeypatch.setitem(models.build.__kwdefaults__, "ir_version", ir_version(opset))
    monkeypatch.setattr(models.mlp, "__defaults__", (opset, ir_version(opset)))
    source = BUILDERS[name]()
    assert source.opset_import[0].version == opset
    assert reported(source, tmp_path, form)[0] == float_tensors(source)


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("name", [name for name, each in NORMALIZED.items() if each.values])
def test_every_tensor_behind_views_is_listed_by_each_view(name, opset, form, tmp_path):
    """The names that weights get stand for all tensors of the file, each of which leads some of these names."""
    source = NORMALIZED[name].make(opset)
    names, _ = reported(source, tmp_path, form)
    assert names == Counter(list(NORMALIZED[name].values))
    leading = {next(t for t in float_tensors(source) if n == t or n.startswith(f"{t}_")) for n in names}
    assert leading == set(float_tensors(source))


def crowded(opset: int) -> onnx.ModelProto:
    """What no output depends on, what holds a number at most, and what is an output, in the graph and in branches."""

    def part(out: str, last: str) -> onnx.GraphProto:
        nodes = [
            node("Constant", "", f"{out}_held", value=numpy_helper.from_array(weight(FFN, FFN))),
            node("MatMul", f"z {last}", f"{out}_a"),
            node("MatMul", f"{out}_a {out}_held", out),
            node("MatMul", f"z {out}_dead", f"{out}_b"),
            node("Relu", f"{out}_b", f"{out}_c"),
            node("Identity", f"{out}_given", f"{out}_copy"),
        ]
        own = {f"{out}_dead": (FFN, FFN), f"{out}_unread": (3, 3), f"{out}_given": (4, 4), f"{out}_plain": (2, 2)}
        held = [numpy_helper.from_array(weight(*shape), name) for name, shape in own.items()]
        outs = [value(out, WIDE), value(f"{out}_copy", (4, 4)), value(f"{out}_plain", (2, 2))]
        return helper.make_graph(nodes, out, [], outs, held)

    gone = helper.make_graph(
        [node("MatMul", "z only_dead", "g")], "gone", [], [value("g", WIDE)],
        [numpy_helper.from_array(vector(5), "dead_vector")],
    )  # fmt: skip
    empty = helper.make_graph([node("Relu", "z", "n")], "empty", [], [value("n", WIDE)])
    nodes = [
        node("Constant", "", "one_held", value=numpy_helper.from_array(np.ones((1, 1), np.float32))),
        node("Constant", "", "out_held", value=numpy_helper.from_array(weight(3, 5))),
        node("Constant", "", "unread_held", value=numpy_helper.from_array(weight(3, 5))),
        node("Mul", "x one_held", "x1"),
        node("Mul", "x1 one", "x2"),
        node("Add", "x2 scalar", "x3"),
        node("MatMul", "x3 w", "z"),
        node("MatMul", "x3 none", "void"),
        node("MatMul", "z dead", "d"),
        node("Softmax", "d", "e"),
        node("If", "c", "dead_if", then_branch=gone, else_branch=empty),
        node("If", "c", "y copy plain", then_branch=part("then", "both"), else_branch=part("other", "both")),
        node("Identity", "shown", "shown_copy"),
        node("Transpose", "turned", "turned_copy", perm=[1, 0]),
        node("MatMul", "z turned", "t"),
        node("Cast", "double", "narrow", to=TensorProto.FLOAT),
        node("Transpose", "narrow", "narrow_copy", perm=[1, 0]),
    ]
    shapes = {"w": (HIDDEN, FFN), "dead": (FFN, 7), "only_dead": (FFN, FFN), "unread": (7, 7), "both": (FFN, FFN)}
    shapes |= {"one": (1, 1), "none": (HIDDEN, 0), "shown": (5, 5), "turned": (FFN, 4), "double": (3, 2)}
    weights = {name: weight(*shape, dtype=np.float64 if name == "double" else np.float32) for name, shape in
               shapes.items()}  # fmt: skip
    weights |= {"scalar": np.float32(0), "unread_vector": vector(9), "unread_scalar": np.float32(1)}
    outputs = {"y": WIDE, "copy": (4, 4), "plain": (2, 2), "void": (*WIDE[:2], 0), "out_held": (3, 5)}
    outputs |= {"shown_copy": (5, 5), "turned_copy": (4, FFN), "t": (*WIDE[:2], 4), "narrow_copy": (2, 3)}
    graph = helper.make_graph(
        nodes, "crowded", [value("x", models.ACTIVATION), value("c", (), TensorProto.BOOL)],
        [value(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version(opset))


DEAD = ["dead", "only_dead", "dead_vector", "unread", "unread_vector", "unread_held"]
DEAD += [f"{out}_{what}" for out in ("then", "other") for what in ("dead", "unread")]


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_what_is_dead_or_tiny_or_an_output_is_listed(opset, form, external, tmp_path):
    source = crowded(opset)
    path = save(source, tmp_path, external=external)
    outcome = quantize(path, tmp_path / "out.onnx", form=form)
    reasons = {d.name: d.reason for d in outcome.skipped}
    assert Counter([*(x.name for x in outcome.layers), *(d.name for d in outcome.skipped)]) == float_tensors(source)
    expected = {
        **{"one": "a tensor of one number", "one_held": "a tensor of one number", "none": "a tensor without numbers"},
        "out_held": "it is an output of the model",
        "shown": "it is an output of the model, through Identity",
        "turned": "it is also an output of the model, through Transpose",
        "double": "it is an output of the model, through Cast, Transpose",
        **{f"{out}_plain": "it is an output of a branch or loop body" for out in ("then", "other")},
        **{f"{out}_given": "it is an output of a branch or loop body, through Identity" for out in ("then", "other")},
    }
    assert {name: reasons[name] for name in expected} == expected
    kept = initializers(onnx.load(tmp_path / "out.onnx"))
    if form == "dq" and opset < 21:
        assert sorted(name for name, reason in reasons.items() if reason == REMOVED) == sorted(DEAD)
        assert not kept.keys() & set(DEAD)
    else:  # nothing is converted: it stays
        assert REMOVED not in reasons.values()
        assert {n for n, reason in reasons.items() if reason == UNREAD} == {n for n in DEAD if "unread" in n} | {
            "dead_vector"
        }
    for c in (True, False):
        feeds = X | {"c": np.array(c)}
        for got, expected in zip(run(tmp_path / "out.onnx", feeds), run(source, feeds), strict=True):
            assert got.shape == expected.shape and (not got.size or relative(got, expected) < 0.3)


def with_unused_function(opset: int) -> onnx.ModelProto:
    """A function that nothing calls, one that only it calls, and one without matrices that stays a function."""
    held = [node("Constant", "", name, value=numpy_helper.from_array(weight(4, 4))) for name in ("u", "v")]
    scale = node("Constant", "", "s", value_floats=vector().tolist())
    functions = [
        function("Inner", "a", "b", [held[0], node("MatMul", "a u", "b")], opset),
        function(
            "Unused", "a", "b", [held[1], node("MatMul", "a v", "i"), normalize_models.call("Inner", "i", "b")], opset
        ),
        function("Scale", "a", "b", [scale, node("Mul", "a s", "b")], opset),
    ]
    nodes = [normalize_models.call("Scale", "x", "h"), node("MatMul", "h w", "y")]
    return with_functions(nodes, {"w": weight(HIDDEN, FFN)}, functions, opset)


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("opset", [17, 18, 21])
def test_functions_that_nothing_calls_are_listed(opset, form, tmp_path):
    source = with_unused_function(opset)
    names, reasons = reported(source, tmp_path, form)
    converted = form == "dq" and opset < 21
    expected = float_tensors(source)
    if converted:  # the function is written out, and its constant is the graph's
        expected = Counter("s" if name == "Scale/s" else name for name in expected)
    assert names == expected
    assert reasons["s" if converted else "Scale/s"] == VECTOR
    for name, which in (("Inner/u", "local.Inner"), ("Unused/v", "local.Unused")):
        kept = f"it lies in the function {which!r}, which no node calls"
        assert reasons[name] == (REMOVED if converted else kept)
    assert relative(run(tmp_path / "out.onnx", X)[0], run(source, X)[0]) < 0.2


BIASES = {"a row": (1, FFN), "a column": (8, 1), "a matrix": (8, FFN), "a vector": (FFN,)}


@pytest.mark.parametrize("beta", [1.0, 2.0, 0.0])
@pytest.mark.parametrize("shape", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("opset", [13, 21])
def test_the_bias_of_a_gemm_is_called_so(opset, alpha, shape, beta, tmp_path):
    source = normalize_models.gemm(shape, opset=opset, alpha=alpha, beta=beta)
    names, reasons = reported(source, tmp_path)
    assert names == float_tensors(source) == Counter(["w", "c"])
    assert reasons == {"c": UNREAD if beta == 0 else VECTOR if len(shape) == 1 else "the bias of a Gemm"}
    x = {"x": tokens(8, HIDDEN)}
    assert relative(run(tmp_path / "out.onnx", x)[0], run(source, x)[0]) < 0.2


def test_a_bias_that_two_gemms_read_with_factors_is_listed_once(tmp_path):
    nodes = [node("Gemm", "x w c", "h", beta=2.0), node("Gemm", "h v c", "i", beta=-1.0), node("Mul", "i c", "y")]
    weights = {"w": weight(HIDDEN, FFN), "v": weight(FFN, FFN), "c": weight(1, FFN)}
    source = build(nodes, weights, {"y": ("n", FFN)}, [value("x", ("n", HIDDEN))])
    names, reasons = reported(source, tmp_path)
    assert names == Counter(["w", "v", "c"])
    assert set(reasons) == {"c"}
    x = {"x": tokens(5, HIDDEN)}
    assert relative(run(tmp_path / "out.onnx", x)[0], run(source, x)[0]) < 0.3


def test_a_bias_of_conv_and_of_a_gemm_that_is_left_are_called_so(tmp_path):
    """A Gemm with alpha=0 stays as it is."""
    nodes = [node("Gemm", "x w c", "h", alpha=0.0), node("MatMul", "h v", "y")]
    weights = {"w": weight(HIDDEN, FFN), "v": weight(FFN, FFN), "c": weight(1, FFN)}
    source = build(nodes, weights, {"y": ("n", FFN)}, [value("x", ("n", HIDDEN))])
    assert reported(source, tmp_path)[1] == {"w": "read by a Gemm with alpha=0", "c": "the bias of a Gemm"}


@pytest.mark.parametrize("name", sorted(NOTHING_LEFT))
def test_a_model_without_a_weight_to_quantize_says_why(name, tmp_path):
    with pytest.raises(JaxqError, match=r"has no weight that can be quantized: [a-z]"):
        reported(MODELS[name](), tmp_path)


def test_a_model_of_dead_weights_says_so(tmp_path):
    source = linear([node("MatMul", "x w", "dead"), node("Relu", "x", "y")], {"w": weight(HIDDEN, FFN)}, 18, HIDDEN)
    with pytest.raises(JaxqError, match=f"has no weight that can be quantized: {REMOVED}"):
        reported(source, tmp_path)
