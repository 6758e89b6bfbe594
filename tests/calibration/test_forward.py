"""Windows lend their weights to onnxruntime: nothing large is copied into a protobuf."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.calibration import forward
from jaxq.calibration.forward import ModelVariant, SessionOptions
from jaxq.calibration.spool import Spool
from jaxq.calibration.windows import plan_windows
from jaxq.evaluation import accuracy as evaluation
from jaxq.files.model_file import load_model
from jaxq.graph.prepare import prepare
from jaxq.runtime.batches import Batch
from jaxq.runtime.session import session
from tests.support import models
from tests.support.decoder import decoder_batches
from tests.support.models import FFN, HIDDEN, tokens
from tests.support.running import quantize, run, save


def transposed() -> onnx.ModelProto:
    """A weight that is computed from the one in the file."""
    nodes = [models.node("Transpose", "w", "t", perm=[1, 0]), models.node("MatMul", "x t", "y")]
    return models.build(nodes, {"w": models.weight(FFN, HIDDEN)}, {"y": (*models.ACTIVATION[:2], FFN)})


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
@pytest.mark.parametrize("make", [models.swiglu, transposed, models.MODELS["half"]], ids=["plain", "view", "half"])
def test_weights_are_lent(make, external, monkeypatch, tmp_path):
    sizes: list[int] = []

    def recording(proto, level=None, providers=("cpu",), weights=None, mapped=False):
        assert weights
        assert all(array.flags.c_contiguous and array.flags.aligned for array in weights.values())
        sizes.append(len(proto))
        return session(proto, level, providers, weights, mapped)

    monkeypatch.setattr(forward, "session", recording)
    source = save(make(), tmp_path, external=external)
    model = load_model(source)
    prepare(model)
    half = make is models.MODELS["half"]
    x = tokens(2, 5, HIDDEN).astype(np.float16 if half else np.float32)
    spool = Spool(tmp_path / "spool", [Batch({"x": x})])
    windows = plan_windows(model.graph, [model.graph.outputs[0]], 1 << 30)
    (window,) = windows
    (runner,) = next(forward.forward(model, windows, [ModelVariant(spool)], SessionOptions()))
    got = runner.run(0)["y"].numpy()
    assert sizes[0] < 4000 < window.weight_bytes
    np.testing.assert_array_equal(got, run(source, {"x": x})[0])


def test_windows_that_ran_are_passed_over(decoder, tmp_path):
    model = ir.load(decoder)
    prepare(model)
    batches = decoder_batches()
    windows = plan_windows(model.graph, [model.graph.outputs[0]], 40_000)
    assert len(windows) > 4

    def run_all(spool: Spool, done: int = 0, stop: int | None = None) -> list[np.ndarray]:
        last = []
        variants = [ModelVariant(spool)]
        for count, (runner,) in enumerate(forward.forward(model, windows, variants, done=done), done + 1):
            last = [runner.run(i) for i in range(len(batches))]
            if count == stop:
                return []
        return [values["logits"].numpy() for values in last]

    whole = run_all(Spool(tmp_path / "whole", batches))
    run_all(Spool(tmp_path / "cut", batches), stop=3)
    plan = forward.plan_hash(windows)
    spool = Spool(tmp_path / "cut", batches)
    assert spool.resume(plan) == 2  # the third was not committed: its caller had not come back
    for a, b in zip(whole, run_all(spool, done=2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert Spool(tmp_path / "cut", batches).resume("another plan") == 0
    assert Spool(tmp_path / "empty", batches).resume(plan) == 0


def test_a_large_model_is_judged_from_its_file(decoder, monkeypatch, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(decoder, target)
    held_out = [Batch({**b.feeds}, b.keep) for b in decoder_batches()]
    small = evaluation.evaluate(decoder, target, held_out)
    seen: list[bool] = []

    def recording(model: Path, *args, mapped: bool = False):
        seen.append(mapped)
        return session(model, *args, mapped=mapped)

    monkeypatch.setattr(evaluation, "LARGE", 0)
    monkeypatch.setattr(evaluation, "session", recording)
    large = evaluation.evaluate(decoder, target, held_out)
    assert seen[0]
    assert isinstance(small, evaluation.Evaluation)
    assert isinstance(large, evaluation.Evaluation)
    assert large.float_perplexity == pytest.approx(small.float_perplexity, rel=1e-5)
