"""Windows hold each needed node once, within their budget, and together compute what the whole model computes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.calibration.windows import Window, plan_windows, window_model
from jaxq.errors import JaxqError
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites
from tests.support import models
from tests.support.models import ACTIVATION, HIDDEN, build, node, tokens, weight
from tests.support.running import relative, run

LAYER_BYTES = 4 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3)


def opened(source: Path | onnx.ModelProto, exclude: tuple[str, ...] = ()) -> tuple[ir.Model, list[ir.Value]]:
    """The model in memory and the activations that its weights read."""
    model = ir.load(source) if isinstance(source, Path) else ir.from_proto(source)
    prepare(model)
    sites, _ = find_sites(model.graph, exclude)
    return model, list(dict.fromkeys(x for site in sites for x in site.activation_values))


def names(values: Sequence[ir.Value]) -> list[str]:
    return [str(value.name) for value in values]


def ancestors(graph: ir.Graph, wanted: Sequence[ir.Value]) -> set[ir.Node]:
    """Nodes that the wanted values depend on, by walking back from them."""
    found: set[ir.Node] = set()
    open_ends = [value.producer() for value in wanted]
    while open_ends:
        each = open_ends.pop()
        if each is None or each in found or each.graph is not graph:
            continue
        found.add(each)
        inner = [n for attr in each.attributes.values() if attr.type == ir.AttributeType.GRAPH for n in attr.as_graph()]
        nested = [
            m for n in inner for a in n.attributes.values() if a.type == ir.AttributeType.GRAPH for m in a.as_graph()
        ]
        open_ends += [v.producer() for n in (each, *inner, *nested) for v in n.inputs if v is not None]
    return found


def run_windows(
    model: ir.Model, windows: Sequence[Window], feeds: Mapping[str, np.ndarray], optimize: bool
) -> dict[str, np.ndarray]:
    """Every value that leaves a window, each window fed only what it says it reads."""
    values = dict(feeds)
    for window in windows:
        part = ir.to_proto(window_model(window, model.ir_version, model.opset_imports, list(model.functions.values())))
        for info in part.graph.input:
            array = values[info.name]
            info.CopyFrom(
                models.value(info.name, [None] * array.ndim, onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
            )
        have = {name: values[name] for name in names(window.inputs)}
        outputs = [info.name for info in part.graph.output]
        values |= dict(zip(outputs, run(part, have, *outputs, optimize=optimize), strict=True))
    return values


SMALL = ("siblings", "swiglu", "attention", "conditional", "nested_conditional", "embedding", "constants", "shared")
MODELS = ["decoder", *SMALL]
BUDGETS = [1, 3 * 4 * 64 * 64, 1 << 30]


def source_of(name: str, decoder: Path) -> Path | onnx.ModelProto:
    return decoder if name == "decoder" else models.MODELS[name]()


def feeds_of(model: ir.Model) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(32, size=(2, 6))
    given = {"x": tokens(2, 6, HIDDEN), "ids": ids, "input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {str(v.name): given[str(v.name)] for v in model.graph.inputs}


@pytest.mark.parametrize("max_bytes", BUDGETS)
@pytest.mark.parametrize("name", MODELS)
def test_windows_hold_each_needed_node_once(name, max_bytes, decoder):
    model, wanted = opened(source_of(name, decoder))
    windows = plan_windows(model.graph, wanted, max_bytes)
    nodes = [n for window in windows for n in window.nodes if n.op_type != "Constant"]
    needed = {n for n in ancestors(model.graph, wanted) if n.op_type != "Constant"}
    assert len(nodes) == len(set(nodes))
    assert nodes == [n for n in model.graph if n in needed]
    inner = [v for v in wanted if not v.is_graph_input()]
    assert sorted(v for w in windows for v in names(w.captures)) == sorted(names(inner))


@pytest.mark.parametrize("max_bytes", BUDGETS)
@pytest.mark.parametrize("name", MODELS)
def test_windows_one_after_the_other_compute_what_the_model_does(name, max_bytes, decoder):
    """Bit for bit; but where a cut divides what onnxruntime fuses (a norm), the rounding of the two differs."""
    model, wanted = opened(source_of(name, decoder))
    inner = [name for name in names(wanted) if name not in names(model.graph.inputs)]
    for optimize, tolerance in ((False, 0), (True, 1e-6)):
        feeds = feeds_of(model)
        values = run_windows(model, plan_windows(model.graph, wanted, max_bytes), feeds, optimize)
        whole = run(ir.to_proto(model), feeds, *inner, optimize=optimize)
        for activation, expected in zip(inner, whole, strict=True):
            assert relative(values[activation], expected) <= tolerance, (activation, optimize)


@pytest.mark.parametrize("max_bytes", [LAYER_BYTES, 2 * LAYER_BYTES])
def test_cuts_between_layers_change_no_bit(max_bytes, decoder):
    model, wanted = opened(decoder)
    values = run_windows(model, plan_windows(model.graph, wanted, max_bytes), feeds_of(model), True)
    whole = run(ir.to_proto(model), feeds_of(model), *names(wanted))
    for activation, expected in zip(names(wanted), whole, strict=True):
        np.testing.assert_array_equal(values[activation], expected, err_msg=activation)


def test_nothing_of_an_excluded_head_is_computed(decoder):
    model, wanted = opened(decoder, exclude=("*lm_head*", "*layers.2.mlp.down_proj*"))
    windows = plan_windows(model.graph, wanted, 1 << 30)
    computed = {str(n.name) for window in windows for n in window.nodes}
    read = {str(v.name) for window in windows for n in window.nodes for v in n.inputs if v is not None}
    assert not any("lm_head" in name or name.startswith("/model/norm") for name in computed | read)
    assert not any("layers.2/mlp" in name for name in computed)
    assert "model.layers.2.mlp.gate_proj.weight" not in read


@pytest.mark.parametrize("max_bytes", [LAYER_BYTES // 4, LAYER_BYTES, 2 * LAYER_BYTES])
def test_windows_keep_to_their_budget(max_bytes, decoder):
    model, wanted = opened(decoder)
    windows = plan_windows(model.graph, wanted, max_bytes)
    assert len(windows) > 1
    for window in windows:
        weights = {v for n in window.nodes for v in n.inputs if v is not None and v.const_value is not None}
        assert window.weight_bytes == sum(v.const_value.nbytes for v in weights if v.const_value is not None)
        assert window.weight_bytes <= max_bytes or len(window.nodes) == 1
    assert len(windows) <= 1 + 2 * sum(w.weight_bytes for w in windows) // max_bytes


def test_only_a_node_that_is_too_large_exceeds_the_budget(decoder):
    model, wanted = opened(decoder)
    for window in plan_windows(model.graph, wanted, 1):
        heavy = [n for n in window.nodes if any(v is not None and v.const_value is not None for v in n.inputs)]
        assert len(heavy) <= 1


def test_cuts_are_made_where_fewest_values_are_alive(decoder):
    """Of the cuts that fill between a half and the whole of the budget."""
    model, wanted = opened(decoder)
    windows = plan_windows(model.graph, wanted, LAYER_BYTES)
    nodes = [n for window in windows for n in window.nodes]
    place = {n: i for i, n in enumerate(nodes)}

    def alive(cut: int) -> int:
        values = [v for n in nodes[:cut] for v in n.outputs]
        return sum(any(place.get(use.node, -1) >= cut for use in v.uses()) for v in values)

    def weight_bytes(start: int, cut: int) -> int:
        read = {v for n in nodes[start:cut] for v in n.inputs if v is not None}
        return sum(v.const_value.nbytes for v in read if v.const_value is not None)

    start = 0
    for window in windows[:-1]:
        stop = start + len(window.nodes)
        cuts = [c for c in range(start + 1, len(nodes)) if LAYER_BYTES // 2 <= weight_bytes(start, c) <= LAYER_BYTES]
        assert alive(stop) == min(map(alive, cuts))
        assert alive(stop) <= 5  # the residual stream, the rotary tables, the mask and one more
        start = stop


def test_live_values_are_those_that_later_windows_read(decoder):
    model, wanted = opened(decoder)
    windows = plan_windows(model.graph, wanted, LAYER_BYTES // 3)
    for i, window in enumerate(windows):
        later = {v for w in windows[i + 1 :] for v in w.inputs}
        computed = [v for n in window.nodes for v in n.outputs]
        assert list(window.live) == [v for v in computed if v in later]
        earlier = {v for w in windows[:i] for v in w.live} | set(model.graph.inputs)
        assert set(window.inputs) <= earlier


def test_an_input_of_the_model_needs_no_window():
    model, wanted = opened(build([node("MatMul", "x w", "y")], {"w": weight(HIDDEN, HIDDEN)}, {"y": ACTIVATION}))
    assert plan_windows(model.graph, wanted, 1) == []


@pytest.mark.parametrize("max_bytes", [0, -5])
def test_a_budget_of_nothing_is_refused(max_bytes):
    model, wanted = opened(models.mlp())
    with pytest.raises(JaxqError, match=f"the window size is {max_bytes} bytes"):
        plan_windows(model.graph, wanted, max_bytes)


def test_a_window_leaves_the_model_as_it_was(decoder):
    model, wanted = opened(decoder)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    for window in plan_windows(model.graph, wanted, LAYER_BYTES):
        window_model(window, model.ir_version, model.opset_imports, [])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_constants_wait_for_nobody():
    """Each window has those that it reads, in its subgraphs too; else thousands of small files would wait."""
    nodes = [
        node("Constant", "", "two", value_float=2.0),
        node("Constant", "", "axes", value_ints=[0]),
        *(node("MatMul", "x a", "h"), node("Mul", "h two", "i"), node("Unsqueeze", "i axes", "j")),
        *(node("MatMul", "j b", "k"), node("Mul", "k two", "l"), node("Squeeze", "l axes", "y")),
    ]
    weights = {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate("ab")}
    model, _ = opened(build(nodes, weights, {"y": ACTIVATION}))
    windows = plan_windows(model.graph, list(model.graph.outputs), 1)
    assert not {"two", "axes"} & {name for w in windows for name in names((*w.live, *w.inputs))}
    read = [{str(v.name) for n in w.nodes for v in n.inputs if v is not None} & {"two", "axes"} for w in windows]
    held = [{str(n.outputs[0].name) for n in w.nodes if n.op_type == "Constant"} for w in windows]
    assert held == read
    assert sum("two" in each for each in held) == 2
    values = run_windows(model, windows, {"x": tokens(2, 6, HIDDEN)}, True)
    assert relative(values["y"], run(ir.to_proto(model), {"x": tokens(2, 6, HIDDEN)}, "y")[0]) == 0
