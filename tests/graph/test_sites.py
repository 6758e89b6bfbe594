"""What `find_sites` takes, and why it leaves the rest alone."""

import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from jaxq.errors import JaxqError
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import Site, find_sites, sibling_groups, unmatched
from jaxq.graph.skipped import Skipped
from jaxq.search.group import _concatenated_columns
from tests.support import models
from tests.support.models import FFN, HIDDEN, MODELS, build, node, weight

VECTOR = "a vector (bias, norm or constant)"


def prepared(model: onnx.ModelProto) -> ir.Model:
    result = ir.from_proto(model)
    prepare(result)
    return result


def sites_of(model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> tuple[list[Site], list[Skipped]]:
    return find_sites(prepared(model).graph, exclude)


def unread() -> onnx.ModelProto:
    return build([node("Relu", "x", "y")], {"w": weight(HIDDEN, HIDDEN)}, {"y": models.ACTIVATION})


def first_input() -> onnx.ModelProto:
    return build(
        [node("MatMul", "w x", "y")], {"w": weight(8, HIDDEN)}, {"y": (8, 4)}, [models.value("x", (HIDDEN, 4))]
    )


def contrib() -> onnx.ModelProto:
    """A MatMul of another domain is another operator."""
    model = models.linear_pair()
    model.graph.node[1].domain = "com.microsoft"
    model.opset_import.add(domain="com.microsoft", version=1)
    return model


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        pytest.param(unread, "w", "no node reads it", id="unread"),
        pytest.param(models.weight_as_output, "w", "it is an output of the model", id="graph output"),
        pytest.param(models.layer_norm, "scale", VECTOR, id="norm"),
        pytest.param(models.biased, "bias", VECTOR, id="bias"),
        pytest.param(
            models.embedding,
            "table",
            "a table that Gather and MatMul read: gather.axis=1 quantizes it once for both",
            id="embedding",
        ),
        pytest.param(
            first_input,
            "w",
            "read by MatMul as input 0: the second input of MatMul, Gemm and Conv can be quantized",
            id="first input",
        ),
        pytest.param(
            contrib,
            "second",
            "read by MatMul as input 1: the second input of MatMul, Gemm and Conv can be quantized",
            id="other domain",
        ),
        pytest.param(lambda: models.gemm(alpha=0.0), "w", "read by a Gemm with alpha=0", id="alpha"),
        pytest.param(models.gemm_mixed, "w", "shared by Gemm nodes with and without transB", id="both transB"),
        pytest.param(
            models.constant_activation, "w", "it multiplies a constant, not an activation", id="constant activation"
        ),
        pytest.param(
            MODELS["double"], "w", "its type is DOUBLE: float32, float16 and bfloat16 can be quantized", id="double"
        ),
    ],
)
def test_a_weight_is_declined_with_its_reason(make, name, reason):
    sites, skipped = sites_of(make())
    assert name not in [site.name for site in sites]
    assert {d.name: d.reason for d in skipped}[name] == reason


@pytest.mark.parametrize(
    ("make", "names"),
    [
        pytest.param(models.mlp, ["up", "down"], id="mlp"),
        pytest.param(models.siblings, ["q", "k", "v"], id="siblings"),
        pytest.param(models.shared, ["w"], id="shared"),
        pytest.param(models.constants, ["w"], id="constants"),
        pytest.param(models.unnamed, ["up", "down"], id="unnamed"),
        pytest.param(models.listed, ["up", "down"], id="listed"),
        pytest.param(models.embedding, ["w"], id="embedding"),
        pytest.param(models.conditional, ["first", "outer", "inner", "second"], id="conditional"),
        pytest.param(MODELS["half"], ["w"], id="half"),
        pytest.param(models.attention, ["q", "k", "v", "o", "lm_head"], id="attention"),
        pytest.param(models.stacked, ["experts"], id="stack"),
        pytest.param(models.convolution, ["kernel"], id="convolution"),
    ],
)
def test_sites_come_in_graph_order(make, names):
    assert [site.name for site in sites_of(make())[0]] == names


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_float_weight_is_a_site_or_declined(make):
    model = prepared(make())
    sites, skipped = find_sites(model.graph)
    names = [site.name for site in sites] + [d.name for d in skipped]
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    tensors = {name: v.const_value for graph in model.graphs() for name, v in graph.initializers.items()}
    assert sorted(names) == sorted(n for n, t in tensors.items() if t and t.dtype in floats and t.size > 1)


@pytest.mark.parametrize(
    ("attributes", "transposed"), [pytest.param({}, False, id="plain"), pytest.param({"transB": 1}, True, id="transB")]
)
def test_a_site_gives_its_weight_as_c_in_by_c_out(attributes, transposed):
    ((site,), _) = sites_of(models.gemm(**attributes))
    assert (site.c_in, site.c_out, site.transposed) == (HIDDEN, FFN, transposed)
    np.testing.assert_array_equal(site.array(), weight(HIDDEN, FFN))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_a_weight_that_is_not_finite_is_named(bad):
    w = weight(HIDDEN, HIDDEN)
    w[3, [4, 5]] = bad
    model = build([node("MatMul", "x w", "y")], {"w": w}, {"y": models.ACTIVATION})
    ((site,), _) = sites_of(model)
    with pytest.raises(JaxqError, match="weight 'w' has 2 values that are NaN or infinite"):
        site.array()


@pytest.mark.parametrize(
    ("make", "groups"),
    [
        pytest.param(models.siblings, [(["q", "k", "v"], ["scaled"])], id="siblings"),
        pytest.param(models.swiglu, [(["gate", "up"], ["x"]), (["down"], ["product"])], id="swiglu"),
        pytest.param(models.shared, [(["w"], ["x", "r"])], id="shared, two activations"),
        pytest.param(lambda: models.shared(same=True), [(["w"], ["x"])], id="shared, one activation"),
    ],
)
def test_siblings_read_one_activation(make, groups):
    found = sibling_groups(sites_of(make())[0])
    assert [([s.name for s in g.sites], [str(v.name) for v in g.activation_values]) for g in found] == groups
    assert [g.name for g in found] == [activation_values[0] for _, activation_values in groups]


def with_head(name: str) -> onnx.ModelProto:
    """The mlp with its last layer named as exporters name a language model's."""
    model = models.mlp()
    model.graph.node[2].name = name
    return model


PREFIXES = ["/lm_head/MatMul", "/m/lm_head/MatMul", "/model/decoder/lm_head/MatMul", "lm_head"]


@pytest.mark.parametrize("name", PREFIXES)
def test_a_node_is_excluded_whatever_leads_its_name(name):
    sites, skipped = sites_of(with_head(name), exclude=("*lm_head*",))
    assert [site.name for site in sites] == ["up"]
    assert [(d.name, d.reason) for d in skipped] == [("down", "excluded by the pattern '*lm_head*'")]


@pytest.mark.parametrize(
    ("exclude", "left", "useless"),
    [
        pytest.param(("up",), ["down"], [], id="weight name"),
        pytest.param(("*/y/*",), ["up"], [], id="node name"),
        pytest.param(("d?wn", "up"), [], [], id="each of two"),
        pytest.param(("dow", "UP", "nothing*"), ["up", "down"], ["dow", "UP", "nothing*"], id="none"),
        pytest.param(("down", "*lm_head*"), ["up"], ["*lm_head*"], id="one of two"),
    ],
)
def test_patterns_exclude_by_name_and_the_useless_ones_are_told(exclude, left, useless):
    graph = prepared(models.mlp()).graph
    sites, _ = find_sites(graph, exclude)
    assert [site.name for site in sites] == left
    assert unmatched(graph, exclude) == useless


def test_a_pattern_that_another_one_anticipated_is_not_useless():
    exclude = ("*lm_head*", "/lm_head/*")
    assert unmatched(prepared(with_head("/lm_head/MatMul")).graph, exclude) == []


def test_a_declined_weight_tells_its_shape_and_size():
    _, skipped = sites_of(models.biased())
    assert [(d.name, d.shape, d.nbytes) for d in skipped] == [("bias", (HIDDEN,), 4 * HIDDEN)]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_preparation_leaves_a_valid_model_with_names(make):
    model = prepared(make())
    assert all(n.name and all(v.name for v in n.outputs) for n in model.graph.all_nodes())
    assert not any(v.is_initializer() for v in model.graph.inputs)
    assert not any(n.op_type == "Constant" and n.attributes["value"].as_tensor().size > 16 for n in model.graph)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_a_graph_with_a_cycle_is_refused():
    model = models.mlp()
    model.graph.node[0].input[0] = "r"
    with pytest.raises(JaxqError, match="the model's graph is not valid: TopologicalSortPass says"):
        prepared(model)


def test_siblings_are_joined_one_at_a_time():
    """The columns of all are held once, and those of one site beside them."""
    names = [f"w{i}" for i in range(6)]
    nodes = [node("MatMul", f"x {name}", f"y{name}") for name in names] + [
        node("Sum", " ".join(f"y{name}" for name in names), "y")
    ]
    weights = {
        name: np.random.default_rng(i).standard_normal((HIDDEN, 4096), np.float32) for i, name in enumerate(names)
    }
    sites, _ = sites_of(build(nodes, weights, {"y": ("batch", "tokens", 4096)}))
    (group,) = sibling_groups(sites)
    total = sum(weight.nbytes for weight in weights.values())
    tracemalloc.start()
    try:
        joined = _concatenated_columns(group.sites, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(joined, np.concatenate(list(weights.values()), axis=1))
    assert peak < 1.5 * total
