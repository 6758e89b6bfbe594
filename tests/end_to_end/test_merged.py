"""A merged decoder, as optimum exports one: all layers lie in the two branches of an If, which share their weights."""

import numpy as np
import onnx
import pytest

from jaxq.files.model_file import load_model
from jaxq.readback.weights import read_weights
from jaxq.runtime.inputs import read_input_spec, to_batches
from tests.genai.decoders import LAYERS, VOCABULARY, merged_decoder
from tests.support.running import quantize, relative, run, save, with_weights

IDS = np.random.default_rng(0).integers(1, VOCABULARY, (3, 12))
PRODUCTS = ("query", "key", "value", "out", "up", "down")
MATRICES = {f"{name}{i}" for i in range(LAYERS) for name in PRODUCTS} | {"lm_head"}
PRESENT = [f"present.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]


def fed(path, ids: np.ndarray, **others: np.ndarray):
    return to_batches({"input_ids": ids, **others}, read_input_spec(load_model(path)), len(ids))


def in_two_steps(path) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the tokens at once, by the branch without a past, and of the later ones after the first five."""
    (whole,) = fed(path, IDS)
    (first,) = fed(path, IDS[:, :5])
    assert not whole.feeds["use_cache_branch"].any()
    names = [name.replace("present", "past_key_values") for name in PRESENT]
    past = dict(zip(names, run(path, first.feeds, *PRESENT), strict=True))
    mask = np.ones_like(IDS)
    (second,) = fed(path, IDS[:, 5:], attention_mask=mask, **past)
    assert second.feeds["use_cache_branch"].all()
    return run(path, whole.feeds, "logits")[0], run(path, second.feeds, "logits")[0]


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize("method", ["rtn_dq", "awq_lite", "awq_full", "best"])
@pytest.mark.parametrize("opset", [17, 18, 21])
def test_both_branches_of_a_merged_decoder(opset, method, form, tmp_path):
    """Calibration does not see into branches: their weights are rounded to nearest, and the report says so."""
    source, target = save(merged_decoder(opset), tmp_path), tmp_path / "out.onnx"
    before = in_two_steps(source)
    assert relative(before[0][:, 5:], before[1]) < 1e-5
    outcome = quantize(source, target, method, fed(source, IDS) if method != "rtn_dq" else ())
    layers = {layer.name: layer for layer in outcome.layers}
    assert set(layers) == MATRICES
    assert {layer.note for layer in layers.values()} == {
        "" if method == "rtn_dq" else "in a subgraph: rounded to nearest"
    }
    assert {len(layer.nodes) for layer in layers.values()} == {2}
    assert {d.name for d in outcome.skipped} == {"embed", "wpe", "norm", "bias"}
    weights = {w.name: w.dequantize() for w in read_weights(load_model(target))}
    assert set(weights) == MATRICES
    reference = save(with_weights(onnx.load(source), weights), tmp_path, "reference.onnx")
    for got, expected, exact in zip(in_two_steps(target), in_two_steps(reference), before, strict=True):
        assert relative(got, expected) < 1e-5
        assert 0.001 < relative(got, exact) < 0.3


def test_a_merged_decoder_has_a_real_branch():
    source = merged_decoder(18)
    (choice,) = [n for n in source.graph.node if n.op_type == "If"]
    branches = {a.name: a.g for a in choice.attribute}
    assert {name: "Concat" in {n.op_type for n in g.node} for name, g in branches.items()} == {
        "then_branch": True,
        "else_branch": False,
    }
    assert not any(g.initializer for g in branches.values())
