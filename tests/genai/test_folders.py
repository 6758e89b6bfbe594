"""Models of onnxruntime-genai's builder: fed, quantized, compared, and generated from."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from jaxq.errors import JaxqError
from jaxq.files.model_file import load_model
from jaxq.graph.opset import raise_opset
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites, sibling_groups
from jaxq.runtime.inputs import read_input_spec, to_batches
from tests.genai.checks import check_folder, check_generation, check_run, run_jaxq
from tests.genai.folders import NAMES, RUNS, VOCABULARY, batch, logits, make_folder, random_ids
from tests.support.moments import captured_moments
from tests.support.running import relative

pytestmark = RUNS
SIZES = {"llama-fp32": 10, "llama_tied-fp32": 10, "qwen3-fp32": 10, "gemma2-fp32": 10, "llama-fp16": 14}
"""Number of weights besides the head and the embedding."""


@pytest.fixture(scope="module", params=NAMES)
def path(request, tmp_path_factory):
    return make_folder(request.param, tmp_path_factory.mktemp("genai") / request.param)


def test_caches_are_empty_and_of_the_models_type(path):
    fed = batch(path, random_ids(3, 12))
    kind = np.float16 if "fp16" in path.parent.name else np.float32
    size = 32 if "qwen3" in path.parent.name else 16
    caches = {name: a for name, a in fed.feeds.items() if name.startswith("past_key_values.")}
    assert len(caches) == 4
    for name, cache in caches.items():
        window = 64 if "gemma2" in path.parent.name and ".0." in name else 0
        assert (cache.shape, cache.dtype) == ((3, 2, window, size), kind)
        assert not cache.any()


def test_padding_on_either_side_changes_no_real_token(path):
    ids = random_ids(3, 12)
    mask = np.ones_like(ids)
    mask[1, :4], mask[2, 9:] = 0, 0
    for fill in (0, 7):
        fed = batch(path, np.where(mask, ids, fill), mask)
        assert fed.keep is not None
        got = logits(path, fed)
        for row in range(3):
            alone = logits(path, batch(path, ids[row : row + 1, mask[row] > 0]))
            np.testing.assert_allclose(got[row][fed.keep[row] > 0], alone[0], atol=1e-5 if fill else 1e-4)


def test_moments_know_no_padding(path):
    """Rows padded left, right and with other tokens have the moments of the same rows alone."""
    ids = random_ids(3, 12)
    mask = np.ones_like(ids)
    mask[1, :4], mask[2, 9:] = 0, 0
    alone = [batch(path, ids[row : row + 1, mask[row] > 0]) for row in range(3)]
    expected = _moments(path, alone)
    for fill in (0, 7):
        got = _moments(path, [batch(path, np.where(mask, ids, fill), mask)])
        assert got.keys() == expected.keys()
        assert got.keys()
        for name, moments in expected.items():
            assert int(got[name].tokens) == 12 + 8 + 9
            assert relative(np.asarray(got[name].h), np.asarray(moments.h)) < 1e-3 if "fp16" in str(path) else 1e-5
            np.testing.assert_allclose(got[name].a, moments.a, rtol=2e-3 if "fp16" in str(path) else 1e-4)


def _moments(path, batches):
    model = load_model(path)
    prepare(model)
    sites, _ = find_sites(model.graph, ("*lm_head*",))
    wanted = list(dict.fromkeys(activation for group in sibling_groups(sites) for activation in group.activations))
    return captured_moments(model, wanted, batches, window_bytes=100_000)[0]


@pytest.mark.parametrize("opset", [14, 17, 20])
def test_operators_of_microsoft_survive_a_higher_opset(path, opset):
    """Older versions of the builder write lower opsets."""
    model = load_model(path)
    if opset < 20 and any(node.op_type == "Gelu" for node in model.graph):
        pytest.skip("Gelu came with opset 20")
    model.opset_imports[""] = opset
    before = [(node.domain, node.op_type) for node in model.graph if node.domain == "com.microsoft"]
    raise_opset(model, 21, 10)
    assert model.opset_imports[""] == 21
    assert [(node.domain, node.op_type) for node in model.graph if node.domain == "com.microsoft"] == before


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
def test_quantized(path, form, jaxq, tmp_path):
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    level = () if form == "dq" else ("form.accuracy_level=1",)
    done = run_jaxq(jaxq, path, tmp_path, f"form={form}", *level)
    check_run(done, path, SIZES[path.parent.name], tmp_path, 3e-2 if "fp16" in path.parent.name else 1e-4)
    check_folder(path, done.run_folder)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before
    if path.parent.name != "llama-fp16":  # whose float model onnxruntime cannot run token by token on a CPU
        check_generation(path, done.run_folder)


@pytest.mark.parametrize("scale_dtype", ["float32", "float8"])
def test_a_tied_embedding_is_stored_once(scale_dtype, jaxq, tmp_path):
    """As the builder's own int4: one tensor of bytes, which Gather reads through a Reshape."""
    path = make_folder("llama_tied-fp32", tmp_path / "tied")
    everything = ("form=matmulnbits", "gather.axis=1", "method.exclude=[]", f"scale_dtype={scale_dtype}")
    done = run_jaxq(jaxq, path, tmp_path, *everything, "form.accuracy_level=1")
    (tie,) = [layer for layer in done.report["layers"] if layer["is_table"]]
    assert tie["nodes"] == ["/model/embed_tokens/Gather", "/lm_head/MatMul"]
    assert tie["nbytes"] == VOCABULARY * 64 // 2 + VOCABULARY * 2 * (4 if scale_dtype == "float32" else 1) + (
        0 if scale_dtype == "float32" else 4
    )
    written = onnx.load(done.run_folder / "model.onnx")
    (codes,) = [t.name for t in written.graph.initializer if list(t.dims) == [VOCABULARY, 2, 16]]
    readers = {node.op_type for node in written.graph.node if codes in node.input}
    assert readers == {"Reshape", "MatMulNBits"}
    large = [t for t in written.graph.initializer if VOCABULARY in t.dims and t.data_type == onnx.TensorProto.FLOAT]
    assert len(large) == (scale_dtype == "float32")  # the scales
    check_folder(path, done.run_folder)
    check_generation(path, done.run_folder)


def test_the_configuration_names_the_copy(jaxq, tmp_path):
    path = make_folder("llama-fp32", tmp_path / "llama")
    path = path.rename(path.with_name("decoder.onnx"))
    config = json.loads((path.parent / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "decoder.onnx"
    (path.parent / "genai_config.json").write_text(json.dumps(config))
    done = jaxq("model=onnx", f"model.path={path}")
    assert done.code == 0, done.err
    after = json.loads((done.run_folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "model.onnx"
    assert after == config


def test_a_past_of_the_data(tmp_path):
    """The second half of a row after a cache of its first half, as computed by the model, gives the row's logits."""
    path = make_folder("llama-fp32", tmp_path / "llama")
    ids = random_ids(1, 10)  # GroupQueryAttention takes one row beside a past
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    first = dict(zip(names, session.run(names, dict(batch(path, ids[:, :6]).feeds)), strict=True))
    past = {n.replace("present", "past_key_values"): np.asarray(a) for n, a in first.items() if n.startswith("present")}
    spec = read_input_spec(load_model(path))
    for mask in ({}, {"attention_mask": np.ones((1, 10), int)}):
        (fed,) = to_batches({"input_ids": ids[:, 6:], **past, **mask}, spec, 2)
        assert fed.feeds["attention_mask"].shape == (1, 10)
        assert fed.keep is not None and fed.keep.shape == (1, 4)
        np.testing.assert_allclose(logits(path, fed), logits(path, batch(path, ids))[:, 6:], atol=1e-5)
    holes = np.ones((1, 10), int)
    holes[0, 9] = 0
    with pytest.raises(JaxqError, match="no padding beside a past"):
        to_batches({"input_ids": ids[:, 6:], **past, "attention_mask": holes}, spec, 2)
    with pytest.raises(JaxqError, match=r"\[1, 9\].*\[1, 4\] beside a past of 6 tokens"):
        to_batches({"input_ids": ids[:, 6:], **past, "attention_mask": np.ones((1, 9), int)}, spec, 2)


def test_a_row_of_padding_alone_is_refused(tmp_path):
    path = make_folder("llama-fp32", tmp_path / "llama")
    mask = np.ones((2, 5), int)
    mask[1] = 0
    with pytest.raises(JaxqError, match=r"row 1 .* padding alone"):
        batch(path, random_ids(2, 5), mask)


def test_a_head_size_that_nothing_tells(tmp_path):
    """Without the shapes of inner values the weight before the attention tells; without that, a sentence asks."""
    path = make_folder("llama-fp32", tmp_path / "llama")
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]
    onnx.save(model, path)
    assert batch(path, random_ids(2, 5)).feeds["past_key_values.1.value"].shape == (2, 2, 0, 16)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.domain = "another"
    onnx.save(model, path)
    with pytest.raises(JaxqError, match=r"past_key_values.0.key.*kv_cache_dim.*size of axis 3.*npz"):
        batch(path, random_ids(2, 5))
    shutil.rmtree(path.parent)
