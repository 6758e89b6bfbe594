"""The ONNX graph of the embedded model against an independent forward pass in float64, and its perplexity."""

import importlib
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from jaxq.embedded import ModelConfig, build_model, load_weights, windows, write_model
from jaxq.embedded.weights import save_weights, weight_shapes
from jaxq.errors import JaxqError

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "embedded"
# Measured on Python 3.11; see experiments/embedded/result.json. The margin is for the texts of other versions.
EVAL_PERPLEXITY_CEILING = 32.0  # measured: 26.2


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("embedded") / "model.onnx"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def session(model_path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
    return np.asarray(logits)


def reference_logits(ids: np.ndarray) -> np.ndarray:
    """Logits [sequence, vocabulary] of one sequence, in float64 with complex rotations and a loop over the heads."""
    config, single = load_weights()
    w = {name: array.astype(np.float64) for name, array in single.items()}
    length, half = len(ids), config.head_size // 2
    rotations = np.exp(1j * np.arange(length)[:, None] * config.rope_base ** (-np.arange(half) / half))

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * w[f"{name}.weight"]

    def rotated(x):
        z = (x[:, :half] + 1j * x[:, half:]) * rotations
        return np.concatenate([z.real, z.imag], axis=1)

    def head(y, layer, number):
        kv_head = number * config.kv_heads // config.heads
        places = [slice(i * config.head_size, (i + 1) * config.head_size) for i in (number, kv_head, kv_head)]
        names = ["q_proj", "k_proj", "v_proj"]
        q, k, v = (y @ w[f"{layer}.self_attn.{n}.weight"][:, p] for n, p in zip(names, places, strict=True))
        scores = rotated(q) @ rotated(k).T / np.sqrt(config.head_size)
        weights = np.where(np.tri(length, dtype=bool), np.exp(scores - scores.max(-1, keepdims=True)), 0)
        return weights / weights.sum(-1, keepdims=True) @ v

    x = w["model.embed_tokens.weight"][ids]
    for number in range(config.layers):
        layer = f"model.layers.{number}"
        y = norm(x, f"{layer}.input_layernorm")
        heads = np.concatenate([head(y, layer, i) for i in range(config.heads)], axis=1)
        x = x + heads @ w[f"{layer}.self_attn.o_proj.weight"]
        y = norm(x, f"{layer}.post_attention_layernorm")
        gate = y @ w[f"{layer}.mlp.gate_proj.weight"]
        hidden = gate / (1 + np.exp(-gate)) * (y @ w[f"{layer}.mlp.up_proj.weight"])
        x = x + hidden @ w[f"{layer}.mlp.down_proj.weight"]
    return norm(x, "model.norm") @ w["lm_head.weight"]


def test_graph_passes_the_full_check(model_path):
    model = onnx.load(model_path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (18, 8)
    assert {node.domain for node in model.graph.node} == {""}


def test_linear_layers_are_matmuls_with_named_weights():
    model = build_model()
    names = [node.name for node in model.graph]
    assert len(names) == len(set(names))
    weight_names = {
        node.name: node.inputs[1].name
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].is_initializer()
    }
    expected = [name for name, shape in weight_shapes(ModelConfig()).items() if len(shape) == 2 and "embed" not in name]
    assert sorted(filter(None, weight_names.values())) == sorted(expected)
    assert weight_names["/model/layers.0/self_attn/q_proj/MatMul"] == "model.layers.0.self_attn.q_proj.weight"
    assert weight_names["/lm_head/MatMul"] == "lm_head.weight"


def test_writing_again_gives_the_same_bytes(model_path, tmp_path):
    write_model(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == model_path.read_bytes()


@pytest.mark.parametrize("length", [1, 7, 256])
def test_logits_match_the_float64_reference(session, length):
    ids = windows("eval")[:2, :length]
    logits = run(session, ids, np.ones_like(ids))
    expected = np.stack([reference_logits(row) for row in ids])
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(session, side):
    ids = windows("eval")[:1, :40]
    plain = run(session, ids, np.ones_like(ids))
    widths = [(0, 0), (9, 0) if side == "left" else (0, 9)]
    padded = run(session, np.pad(ids, widths, constant_values=5), np.pad(np.ones_like(ids), widths))
    real = padded[:, 9:] if side == "left" else padded[:, :40]
    assert np.isfinite(padded).all()
    assert np.abs(real - plain).max() < 1e-4


def test_training_forward_is_the_shipped_graph(session, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENT))
    jax = pytest.importorskip("jax")
    decoder = importlib.import_module("decoder")
    config, weights = load_weights()
    ids = windows("calib")[:2, :50]
    mask = np.ones_like(ids)
    mask[1, 30:] = 0
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        expected = np.asarray(decoder.forward(weights, ids, mask, config))
    assert np.abs(run(session, ids, mask) - expected).max() < 1e-4


def test_perplexity_on_held_out_text_is_that_of_a_trained_model(session):
    losses = []
    for ids in np.array_split(windows("eval"), 8):
        logits = run(session, ids, np.ones_like(ids))[:, :-1]
        shifted = logits - logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(shifted, ids[:, 1:, None], axis=-1)[..., 0]
        losses.append(np.log(np.exp(shifted).sum(-1)) - chosen)
    assert np.exp(np.concatenate(losses).mean(dtype=np.float64)) < EVAL_PERPLEXITY_CEILING


def test_package_files_stay_small():
    package = Path(sys.modules["jaxq.embedded"].__file__ or "").parent
    assert sum(file.stat().st_size for file in package.iterdir() if file.is_file()) < 16e6


def test_weights_survive_saving_and_misfits_are_refused(tmp_path):
    config = ModelConfig(vocabulary=8, hidden=4, layers=1, heads=2, kv_heads=1, head_size=2, ffn=3)
    weights = {name: np.full(shape, 0.5, np.float32) for name, shape in weight_shapes(config).items()}
    path = tmp_path / "weights.safetensors"
    save_weights(path, config, weights)
    loaded_config, loaded = load_weights(path)
    assert loaded_config == config
    assert all(np.array_equal(loaded[name], array) for name, array in weights.items())
    assert len(build_model(path).graph.inputs) == 2
    save_weights(path, config, weights | {"model.norm.weight": np.ones(5)})
    with pytest.raises(JaxqError, match=r"do not fit the config .*: model\.norm\.weight"):
        load_weights(path)
    with pytest.raises(JaxqError, match="no weights of the embedded model"):
        load_weights(tmp_path / "none.safetensors")
