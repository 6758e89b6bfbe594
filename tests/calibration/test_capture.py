"""The moments of a model's activations, however it is cut and padded, are those of the activations themselves."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.calibration.capture import Calibration, WindowRun, capture_moments
from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.graph.activations import Activation
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites
from jaxq.methods.awq import awq_scale, search_scales, weight_magnitude
from jaxq.methods.grids import alpha_grid
from jaxq.numerics.moments import Moments
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.decoder import CONFIG, decoder_batches
from tests.support.models import ACTIVATION, HIDDEN, build, node, tokens, weight
from tests.support.moments import captured_moments
from tests.support.running import initializers, quantize, run, save


def opened(source: Path | onnx.ModelProto) -> tuple[ir.Model, list[Activation]]:
    model = ir.load(source) if isinstance(source, Path) else ir.from_proto(source)
    prepare(model)
    sites, _ = find_sites(model.graph)
    return model, list(dict.fromkeys(x for site in sites for x in site.activations))


def capture(
    source: Path | onnx.ModelProto, batches: Sequence[Batch], max_bytes: int = 1 << 30
) -> tuple[dict[str, Moments], list[WindowRun]]:
    model, wanted = opened(source)
    moments, runs = captured_moments(model, wanted, batches, max_bytes)
    assert set(moments) == {str(v.name) for v in wanted}
    return moments, runs


def real_tokens(source: Path | onnx.ModelProto, batches: Sequence[Batch], name: str) -> np.ndarray:
    """An activation [tokens, c_in] that the whole model gives, in float64, without padding."""
    rows = []
    for batch in batches:
        x = batch.feeds[name] if name in batch.feeds else run(source, batch.feeds, name)[0]
        x = x.reshape(-1, x.shape[-1])
        rows.append(x if batch.keep is None else x[batch.keep.ravel() > 0])
    return np.concatenate(rows).astype(np.float64)


def same(a: Moments, b: Moments) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def x_batches(count: int = 3) -> list[Batch]:
    """Rows that end in padding."""
    keep = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return [Batch({"x": tokens(2, 5, HIDDEN, seed=i)}, keep) for i in range(count)]


@pytest.fixture(scope="module")
def whole(decoder) -> tuple[dict[str, Moments], list[WindowRun]]:
    return capture(decoder, decoder_batches())


def test_moments_are_those_of_the_decoders_activations(decoder, whole):
    moments, _ = whole
    assert len(moments) == 4 * CONFIG.layers + 1
    for name, found in moments.items():
        check(found, real_tokens(decoder, decoder_batches(), name))


@pytest.mark.parametrize("name", ["mlp", "swiglu", "attention", "conditional"])
def test_moments_are_those_of_the_activations(name):
    source = models.MODELS[name]()
    moments, _ = capture(source, x_batches(), max_bytes=1)
    for activation, found in moments.items():
        check(found, real_tokens(source, x_batches(), activation))


def check(found: Moments, x: np.ndarray) -> None:
    assert int(found.tokens) == len(x)
    h, a = x.T @ x / len(x), np.abs(x).mean(0)
    np.testing.assert_allclose(found.h, h, rtol=0, atol=2e-6 * np.abs(h).max())
    np.testing.assert_allclose(found.a, a, rtol=2e-6)
    np.testing.assert_array_equal(found.h, found.h.T)


@pytest.mark.parametrize("make", [models.gemm, models.MODELS["half"]], ids=["rank 2", "half"])
def test_other_ranks_and_types(make):
    source = make()
    half = source.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    x = tokens(3, 4, HIDDEN).astype(np.float16) if half else tokens(12, HIDDEN)
    moments, _ = capture(source, [Batch({"x": x}), Batch({"x": 2 * x})])
    check(moments["x"], np.concatenate([x, 2 * x]).reshape(-1, HIDDEN).astype(np.float64))


@pytest.mark.parametrize("max_bytes", [1, 40_000, 200_000])
def test_many_windows_give_what_one_gives(max_bytes, decoder, whole):
    moments, runs = capture(decoder, decoder_batches(), max_bytes)
    assert len(runs) > len(whole[1]) == 1
    for name, found in moments.items():
        for part, expected in zip(jax.tree.leaves(found), jax.tree.leaves(whole[0][name]), strict=True):
            np.testing.assert_allclose(part, expected, rtol=0, atol=1e-6 * float(jnp.abs(expected).max()))


def test_what_padding_holds_changes_nothing(decoder, whole):
    moments, _ = capture(decoder, decoder_batches(fill=7))
    assert all(same(moments[name], whole[0][name]) for name in moments)


def test_padding_of_an_input_may_be_nan():
    batches = x_batches()
    spoiled = [
        Batch({"x": np.where(b.keep[..., None], b.feeds["x"], np.nan)}, b.keep) for b in batches if b.keep is not None
    ]
    clean, _ = capture(models.mlp(), batches, max_bytes=1)
    moments, _ = capture(models.mlp(), spoiled, max_bytes=1)
    assert all(same(moments[name], clean[name]) for name in moments)


@pytest.mark.parametrize("count", [1, 4])
def test_each_window_runs_once_a_batch(count, decoder):
    steps: list[str] = []

    def progress(label: str, total: int, /) -> Callable[[], None]:
        steps.append(f"{label} {total}")
        return lambda: steps.append("step")

    model, wanted = opened(decoder)
    _, runs = captured_moments(model, wanted, decoder_batches(count), 60_000, progress)
    assert [r.runs for r in runs] == [count] * len(runs)
    assert steps == [f"calibrate {count * len(runs)}"] + ["step"] * (count * len(runs))


def test_an_activation_without_a_token_axis_is_told():
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("MatMul", "t w", "y")]
    source = build(nodes, {"w": weight(HIDDEN, HIDDEN)}, {"y": ("sequence", "batch", HIDDEN)})
    moments, (told,) = capture(source, x_batches())
    assert told.unmasked == ("t",)
    assert int(moments["t"].tokens) == 3 * 10
    _, (told,) = capture(models.mlp(), x_batches())
    assert told.unmasked == ()


def test_losses_from_moments_are_those_from_tokens(decoder, whole):
    """``tr(D' H D)`` against ``||X D||^2 / tokens``, for every alpha and the identity: one forward is enough."""
    fmt = IntegerFormat(block_size=32)
    alphas = jnp.array(alpha_grid(0.1))
    name, activation = "model.layers.1.self_attn.q_proj.weight", "/model/layers.1/input_layernorm/Mul_output_0"
    w = jnp.asarray(initializers(onnx.load(decoder))[name])
    x = real_tokens(decoder, decoder_batches(), activation)
    moments = whole[0][activation]
    losses = search_scales(w, moments, alphas, fmt).losses
    for alpha, loss in zip(alphas, losses, strict=True):
        s = awq_scale(jnp.asarray(np.abs(x).mean(0), jnp.float32), weight_magnitude(w, 32), alpha)[:, None]
        d = np.asarray(fmt.round_trip(w * s) / s, np.float64) - np.asarray(w, np.float64)
        assert float(loss) == pytest.approx(np.sum((x @ d) ** 2) / len(x), rel=1e-5)


def test_memory_does_not_grow_with_the_data(decoder, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held: dict[int, int] = {}
    for count in (3, 12):
        arrays: list[int] = []
        files: list[int] = []

        def step(arrays: list[int] = arrays, files: list[int] = files) -> None:
            arrays.append(sum(a.nbytes for a in jax.live_arrays()))
            files.append(len(list(tmp_path.rglob("*.npy"))))

        model, wanted = opened(decoder)
        data = Calibration(decoder_batches(count), 60_000)
        runs = capture_moments(model, wanted, data, lambda *_: None, lambda *_, step=step: step)  # keeps nothing
        held[count] = max(arrays)
        assert max(files) <= count * max(sum(r.live for r in runs[: i + 1]) for i in range(len(runs)))
        assert max(files) <= count * 8
        assert list(tmp_path.iterdir()) == []
    assert held[12] == held[3]


def test_spooled_values_go_when_no_window_reads_them(decoder, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left: list[int] = []
    model, wanted = opened(decoder)
    captured_moments(
        model, wanted, decoder_batches(1), 60_000, lambda *_: lambda: left.append(len(list(tmp_path.rglob("*.npy"))))
    )
    assert len(left) > 6
    assert max(left) <= 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_bytes", [1, 1 << 30])
def test_an_activation_that_is_not_finite_is_named(max_bytes, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nodes = [node("MatMul", "x a", "h"), node("Log", "h", "bad"), node("MatMul", "bad b", "y")]
    source = build(nodes, {"a": weight(HIDDEN, HIDDEN), "b": weight(HIDDEN, HIDDEN)}, {"y": ACTIVATION})
    with pytest.raises(JaxqError, match="activation 'bad' is NaN or infinite on the calibration data"):
        capture(source, x_batches(), max_bytes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("make", "shape"), [(models.gemm, (12, HIDDEN)), (models.mlp, (2, 5, HIDDEN))])
def test_an_input_that_is_not_finite_is_named(make, shape):
    """And not an activation that was computed from it."""
    with pytest.raises(JaxqError, match="activation 'x' is NaN or infinite"):
        capture(make(), [Batch({"x": np.full(shape, np.nan, np.float32)})])


@pytest.mark.parametrize("method", ["gptq", "best"])
def test_a_weight_that_is_not_finite_is_named(method, tmp_path):
    """And not the activation that it spoils."""
    spoilt = weight(HIDDEN, HIDDEN)
    spoilt[3, 4] = np.inf
    nodes = [node("MatMul", "x a", "h"), node("MatMul", "h b", "y")]
    source = save(build(nodes, {"a": spoilt, "b": weight(HIDDEN, HIDDEN)}, {"y": ACTIVATION}), tmp_path)
    with pytest.raises(JaxqError, match="weight 'a' has 1 values that are NaN or infinite"):
        quantize(source, tmp_path / "out.onnx", method, x_batches())


def picked() -> onnx.ModelProto:
    """The last token's activation, picked by a scalar, added to all: the scalar waits between windows."""
    nodes = [
        node("Shape", "x", "dims"),
        node("Gather", "dims one", "length"),
        node("Sub", "length one", "last"),
        node("MatMul", "x a", "h"),
        node("Gather", "h last", "token", axis=1),
        node("Unsqueeze", "token axes", "wide"),
        node("Add", "h wide", "sum"),
        node("MatMul", "sum b", "y"),
    ]
    weights = {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate("ab")}
    return build(nodes, weights | {"one": np.array(1), "axes": np.array([1])}, {"y": ACTIVATION})


def test_scalars_stay_scalars_between_windows():
    moments, runs = capture(picked(), x_batches(), max_bytes=1)
    assert len(runs) > 2
    check(moments["sum"], real_tokens(picked(), x_batches(), "sum"))


def test_no_samples_are_refused():
    with pytest.raises(JaxqError, match="has no samples"):
        capture(models.mlp(), [])


def test_a_missing_input_is_named():
    nodes = [node("Add", "x attention_mask", "s"), node("MatMul", "s w", "y")]
    inputs = [models.value(name, ACTIVATION) for name in ("x", "attention_mask")]
    source = build(nodes, {"w": weight(HIDDEN, HIDDEN)}, {"y": ACTIVATION}, inputs)
    whole = [Batch({**batch.feeds, "attention_mask": batch.feeds["x"]}) for batch in x_batches(1)]
    with pytest.raises(JaxqError, match=r"batch 1 of the calibration data lacks \['attention_mask'\]"):
        capture(source, [*whole, *x_batches(1)])


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        pytest.param(models.layer_norm, [(2, 5, HIDDEN), (2, 5, 7)], id="read by a norm"),
        pytest.param(models.mlp, [(2, 5, HIDDEN), (2, 5, 7)], id="read by a weight"),
        pytest.param(models.gemm, [(5, 7), (5, 7)], id="read by weights alone"),
        pytest.param(models.gemm, [()], id="a number"),
    ],
)
def test_data_of_another_shape_is_refused(make, shapes):
    with pytest.raises(JaxqError):
        capture(make(), [Batch({"x": np.ones(shape, np.float32)}) for shape in shapes])
