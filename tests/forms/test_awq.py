"""AWQ in every format: never worse than rounding on calibration data, and the file holds what was chosen."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from jaxq.formats.registry import make_format
from jaxq.pipeline.outcome import Outcome
from jaxq.runtime.batches import Batch
from tests.support.models import ACTIVATION, HIDDEN, build, node, siblings, tokens, vector, weight
from tests.support.running import initializers, quantize, relative, run, save, with_weights
from tests.support.unpacked import dequantized

FORMATS = [
    pytest.param("nvfp4", 16, "portable", id="nvfp4"),
    pytest.param("mxfp4", 32, "portable", id="mxfp4"),
    pytest.param("mxfp8", 32, "portable", id="mxfp8"),
    pytest.param("uint4", 32, "column_major", id="uint4"),
    pytest.param("int8", -1, "dq", id="int8"),
]
METHODS = ("awq_lite", "awq_clip", "awq_full")
SEARCHED = [
    pytest.param("int4", 32, "dq", id="int4"),
    pytest.param("uint4", 32, "dq", id="uint4"),
    pytest.param("nvfp4", 16, "portable", id="nvfp4"),
    pytest.param("mxfp4", 32, "portable", id="mxfp4"),
]


def chain(between: str) -> onnx.ModelProto:
    """A vector and two weights; "Identity" between them is none to a division, "Relu" is."""
    middle = [] if between == "Identity" else [node(between, "i", "r")]
    second = "i" if between == "Identity" else "r"
    nodes = [
        node("Mul", "x scale", "h"),
        node("MatMul", "h first", "i"),
        *middle,
        node("MatMul", f"{second} second", "y"),
    ]
    weights = {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate(("first", "second"))}
    weights["first"][:, ::16] *= 8
    return build(nodes, weights | {"scale": vector()}, {"y": ACTIVATION})


def data() -> np.ndarray:
    """Activations with planted outliers."""
    x = tokens(4, 20, HIDDEN)
    x[..., [3, 21]] *= 20
    return x


X = {"x": data()}


def effective(written: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What stands in a file for the float model's tensors: weights with the factors of their activations."""
    held, weights = initializers(written), dequantized(written)
    for product in (n for n in written.graph.node if n.input[0].endswith("_awq")):
        factor = held[f"{product.input[0]}_factor"].astype(np.float64)
        name = "first" if product.input[0] == "h_awq" else "second"
        weights[name] = weights[name] * factor[:, None]
    return weights | ({"scale": held["scale_awq"]} if "scale_awq" in held else {})


def written(method: str, dtype: str, block: int, form: str, folder: Path, between: str) -> tuple[Path, Outcome]:
    source, target = save(chain(between), folder), folder / f"{method}.onnx"
    batches = [] if method == "rtn_dq" else [Batch(X)]
    return target, quantize(source, target, method, batches, make_format(dtype, block), form)


def error(target: Path) -> float:
    """Squared error of the first product on the calibration data."""
    got, want = (run(model, X, "i")[0].astype(np.float64) for model in (target, chain("Relu")))
    return float(np.square(got - want).sum())


@pytest.mark.parametrize(("dtype", "block", "form"), FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_awq_is_never_worse_than_rounding(method, dtype, block, form, tmp_path):
    target, outcome = written(method, dtype, block, form, tmp_path, "Relu")
    plain, _ = written("rtn_dq", dtype, block, form, tmp_path, "Relu")
    coarse = method != "awq_clip" or "4" in dtype  # clipping gains nothing at 8 bits
    assert error(target) <= error(plain) * (0.97 if coarse else 1 + 1e-6)
    for layer in outcome.layers:
        assert layer.loss is not None and layer.loss_rtn is not None and layer.loss <= 1.0001 * layer.loss_rtn
        assert layer.fold == {"first": "vector", "second": "Mul"}[layer.name] or layer.alpha is None


@pytest.mark.parametrize(("dtype", "block", "form"), FORMATS)
def test_scales_of_float_formats_take_up_no_division(dtype, block, form, tmp_path):
    """A vector takes it whatever the format; the columns of the weight before only where their scales are floats."""
    target, outcome = written("awq_full", dtype, block, form, tmp_path, "Identity")
    onnx.checker.check_model(str(target), full_check=True)
    assert [layer.fold for layer in outcome.layers] == ["vector", "weight" if "int" in dtype else "Mul"]
    expected = run(with_weights(chain("Identity"), effective(onnx.load(target))), X)[0]
    assert relative(run(target, X)[0], expected) < 2e-6
    assert relative(expected, run(chain("Identity"), X)[0]) < 0.2


@pytest.mark.parametrize(("dtype", "block", "form"), SEARCHED)
@pytest.mark.parametrize("method", ["awq_lite", "awq_gptq"])
def test_searched_block_scales_are_folded_exactly(method, dtype, block, form, tmp_path):
    """The file gives what the float model gives with the weights that its codes stand for; nothing is divided twice."""
    source, target = save(chain("Identity"), tmp_path), tmp_path / "out.onnx"
    fmt = make_format(dtype, block, full_range=True)
    outcome = quantize(source, target, method, [Batch(X)], fmt, form, block_scales=True)
    onnx.checker.check_model(str(target), full_check=True)
    assert [layer.fold for layer in outcome.layers] == ["vector", "weight" if "int" in dtype else "Mul"]
    assert all(layer.alpha is not None for layer in outcome.layers)
    expected = run(with_weights(chain("Identity"), effective(onnx.load(target))), X)[0]
    assert relative(run(target, X)[0], expected) < 2e-6
    assert relative(expected, run(chain("Identity"), X)[0]) < 0.2


@pytest.mark.parametrize(("dtype", "block", "form"), SEARCHED[::2])
def test_siblings_share_what_is_folded_into_their_norm(dtype, block, form, tmp_path):
    proto, target = siblings(), tmp_path / "out.onnx"
    fmt = make_format(dtype, block, full_range=True)
    outcome = quantize(save(proto, tmp_path), target, "awq_gptq", [Batch(X)], fmt, form)
    assert {(layer.fold, layer.alpha) for layer in outcome.layers} == {("vector", outcome.layers[0].alpha)}
    assert outcome.layers[0].alpha is not None
    written = onnx.load(target)
    norm = initializers(written)["norm_awq"]
    assert np.ptp(np.log(norm / vector())) > 0.4
    expected = run(with_weights(proto, dequantized(written) | {"norm": norm}), X)[0]
    assert relative(run(target, X)[0], expected) < 2e-6
    assert relative(expected, run(proto, X)[0]) < 0.2
