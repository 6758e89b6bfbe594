"""Decoders with and without a cache: fed, quantized, compared; statistics that know no cache and no padding."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from jaxq.errors import JaxqError
from jaxq.files.model_file import load_model
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites, sibling_groups
from jaxq.runtime.caches import empty_cache, is_cache
from jaxq.runtime.inputs import InputSpec, ModelInput, read_input_spec, to_batches
from tests.genai.decoders import HEAD, HEADS, PAST, VOCABULARY, decoder
from tests.genai.folders import RUNS, make_folder
from tests.support.moments import captured_moments
from tests.support.running import relative, run

IDS = np.random.default_rng(0).integers(1, VOCABULARY, (3, 12))
MASK = np.ones_like(IDS)
MASK[1, :4], MASK[2, 9:] = 0, 0

EXPORTS = {
    "with past": {"past": PAST},
    "merged": {"past": PAST, "merged": True},
    "unnamed axes": {"past": (None, HEADS, None, HEAD)},
    "other names": {"past": ("b", HEADS, "past_length + 1", HEAD)},
    "five axes": {"past": (2, "batch", HEADS, "past_len", HEAD)},
    "positions inside": {"past": PAST, "positions": False},
    "mask in int32": {"past": PAST, "mask_dtype": TensorProto.INT32},
}


def written(folder: Path, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(decoder(**options), folder / "model.onnx")
    return folder / "model.onnx"


def fed(path: Path, ids: np.ndarray, mask: np.ndarray | None = None, **others: np.ndarray):
    arrays = {"input_ids": ids, **({} if mask is None else {"attention_mask": mask}), **others}
    (batch,) = to_batches(arrays, read_input_spec(load_model(path)), len(ids))
    return batch


def moments_of(path: Path, batches):
    model = load_model(path)
    prepare(model)
    sites, _ = find_sites(model.graph, ())
    wanted = list(dict.fromkeys(activation for group in sibling_groups(sites) for activation in group.activations))
    return captured_moments(model, wanted, batches, window_bytes=50_000)[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The decoder without a cache."""
    return written(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("options", EXPORTS.values(), ids=EXPORTS)
def test_a_cache_changes_no_logits_and_no_moments(options, plain, tmp_path):
    path = written(tmp_path, **options)
    batch, without = fed(path, IDS, MASK), fed(plain, IDS, MASK)
    assert batch.keep is not None and without.keep is not None
    np.testing.assert_array_equal(batch.keep, MASK)
    expected, got = run(plain, without.feeds)[0], run(path, batch.feeds, "logits")[0]
    np.testing.assert_allclose(got[MASK > 0], expected[MASK > 0], atol=1e-5)
    before, after = moments_of(plain, [without]), moments_of(path, [batch])
    assert before.keys() == after.keys()
    assert len(before) == 9
    for name, moments in before.items():
        assert int(after[name].tokens) == int(moments.tokens) == MASK.sum()
        assert relative(np.asarray(after[name].h), np.asarray(moments.h)) < 1e-5
        np.testing.assert_allclose(after[name].a, moments.a, rtol=1e-5)


@pytest.mark.parametrize("past", [None, PAST], ids=["without past", "with past"])
@pytest.mark.parametrize("positions", [True, False], ids=["positions given", "positions inside"])
def test_moments_know_no_padding(past, positions, tmp_path):
    path = written(tmp_path, past=past, positions=positions)
    alone = moments_of(path, [fed(path, IDS[row : row + 1, MASK[row] > 0]) for row in range(3)])
    for fill in (0, 77):
        padded = moments_of(path, [fed(path, np.where(MASK, IDS, fill), MASK)])
        for name, moments in alone.items():
            assert int(padded[name].tokens) == MASK.sum()
            assert relative(np.asarray(padded[name].h), np.asarray(moments.h)) < 1e-5
            np.testing.assert_allclose(padded[name].a, moments.a, rtol=1e-4)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16], ids=["float32", "float16"])
@pytest.mark.parametrize("past", [None, PAST], ids=["without past", "with past"])
def test_quantized_from_the_command_line(past, dtype, jaxq, tmp_path):
    path = written(tmp_path / "model", past=past, dtype=dtype)
    np.savez(tmp_path / "t.npz", calib=IDS, eval=IDS[:, ::-1], attention_mask=MASK)
    done = jaxq(
        *("model=onnx", f"model.path={path}", f"calib.tokens={tmp_path / 't.npz'}", "method=awq_lite"),
        *("block_size=32", "method.alpha_step=0.25"),
    )
    assert done.code == 0, done.err
    report = done.report
    assert report["calibration"]["tokens"] == MASK.sum()
    assert len(report["layers"]) == 12
    level_1 = report["accuracy"]["runtimes"]["level 1"]
    assert report["accuracy"]["float_perplexity"] > 1 and 0 < level_1["kl"] < 1
    assert level_1["perplexity"] == pytest.approx(report["accuracy"]["float_perplexity"], rel=0.5)
    left = {p.name for p in done.run_folder.iterdir() if p.name[0] != "."}
    assert left == {"model.onnx", "report.json", "layers.csv", "run.log"}


def test_a_past_of_the_data_goes_on_where_it_ends(tmp_path):
    path = written(tmp_path, past=PAST)
    first = fed(path, IDS[:, :7])
    names = [f"present.{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    caches = dict(zip(names, run(path, first.feeds, *names), strict=True))
    past = {name.replace("present", "past_key_values"): cache for name, cache in caches.items()}
    expected = run(path, fed(path, IDS).feeds, "logits")[0][:, 7:]
    for mask in (None, np.ones((3, 12), int)):
        batch = fed(path, IDS[:, 7:], mask, **past)
        np.testing.assert_array_equal(batch.feeds["position_ids"], np.broadcast_to(np.arange(7, 12), (3, 5)))
        assert batch.keep is not None and batch.keep.shape == (3, 5)
        np.testing.assert_allclose(run(path, batch.feeds, "logits")[0], expected, atol=1e-5)
    padded = np.ones((3, 12), int)
    padded[2, 10:] = 0
    for mask in (padded, padded[:, 7:]):  # over all tokens, or over the new ones alone
        batch = fed(path, IDS[:, 7:], mask, **past)
        assert batch.keep is not None
        np.testing.assert_array_equal(batch.keep, padded[:, 7:])
        np.testing.assert_array_equal(batch.feeds["attention_mask"], padded)
        got = run(path, batch.feeds, "logits")[0]
        np.testing.assert_allclose(got[padded[:, 7:] > 0], expected[padded[:, 7:] > 0], atol=1e-5)


def grouped_past(folder: Path, ids: np.ndarray, length: int) -> tuple[Path, dict[str, np.ndarray]]:
    """A decoder with GroupQueryAttention, and its caches of the first tokens as it computes them."""
    path = make_folder("llama-fp32", folder)
    names = [f"present.{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    caches = run(path, fed(path, ids[:, :length]).feeds, *names)
    return path, {n.replace("present", "past_key_values"): c for n, c in zip(names, caches, strict=True)}


@RUNS
def test_a_mask_of_the_new_tokens_beside_a_past_of_grouped_queries(tmp_path):
    """The operator takes the number of all tokens from the mask: a short one puts the new tokens in wrong places."""
    ids = IDS[:1, :10]
    path, past = grouped_past(tmp_path / "llama", ids, 6)
    batch = fed(path, ids[:, 6:], np.ones((1, 4), int), **past)
    assert batch.feeds["attention_mask"].shape == (1, 10)
    expected = run(path, fed(path, ids).feeds, "logits")[0][:, 6:]
    np.testing.assert_allclose(run(path, batch.feeds, "logits")[0], expected, atol=1e-5)


def test_a_merged_decoder_is_told_whether_there_is_a_past(tmp_path):
    path = written(tmp_path, past=PAST, merged=True)
    flag = fed(path, IDS).feeds["use_cache_branch"]
    assert (flag.shape, flag.dtype, flag[0]) == ((1,), np.bool_, np.False_)
    names = [f"past_key_values.{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    past = {name: np.ones((3, HEADS, 4, HEAD), np.float32) for name in names}
    assert fed(path, IDS, **past).feeds["use_cache_branch"][0]


KEYS = [f"past_key_values.{i}.{kind}" for i in range(2) for kind in ("key", "value")]


@pytest.mark.parametrize("past", [PAST, (None, HEADS, None, HEAD)], ids=["named axes", "unnamed axes"])
def test_caches_that_do_not_fit_are_refused(past, tmp_path):
    path = written(tmp_path, past=past)
    good = {name: np.ones((3, HEADS, 4, HEAD), np.float32) for name in KEYS}
    run(path, fed(path, IDS, **good).feeds)
    cases = [
        ({KEYS[1]: np.ones((3, HEADS + 1, 4, HEAD))}, rf"{KEYS[1]}' has shape \[3, 3, 4, 32\] for 3 samples"),
        ({KEYS[2]: np.ones((3, HEADS, 5, HEAD))}, rf"{KEYS[0]}' and '{KEYS[2]}' differ in tokens: 4 and 5"),
    ]
    if past == PAST:
        cases.append(
            ({name: np.ones((2, HEADS, 4, HEAD)) for name in KEYS}, r"has shape \[2, 2, 4, 32\] for 3 samples")
        )
    for bad, words in cases:
        arrays = good | {name: a.astype(np.float32) for name, a in bad.items()}
        with pytest.raises(JaxqError, match=words):
            fed(path, IDS, **arrays)
    with pytest.raises(JaxqError, match=rf"past of 4 tokens, and none for {KEYS[2]}, {KEYS[3]}: give all"):
        fed(path, IDS, **{name: good[name] for name in KEYS[:2]})


def test_an_encoders_tokens_are_not_counted_with_a_decoders():
    names = {f"past_key_values.0.{part}.key": length for part, length in (("decoder", 4), ("encoder", 9))}
    for axes in (("past", "encoder_length"), (None, None)):
        caches = [ModelInput(n, FLOAT, ("batch", 2, axis, 8)) for n, axis in zip(names, axes, strict=True)]
        spec = InputSpec((ModelInput("input_ids", INT, ("b", "s")), *caches), None)
        given = {name: np.ones((3, 2, length, 8), np.float32) for name, length in names.items()}
        (batch,) = to_batches({"input_ids": IDS, **given}, spec, 3)
        assert [batch.feeds[name].shape[2] for name in names] == [4, 9]


@RUNS
def test_grouped_queries_take_a_past_for_one_sample_at_a_time(tmp_path):
    """More are what onnxruntime refuses, in words that name no option."""
    ids = IDS[:2, :10]
    path, past = grouped_past(tmp_path / "llama", ids, 6)
    spec, arrays = read_input_spec(load_model(path)), {"input_ids": ids[:, 6:], **past}
    with pytest.raises(JaxqError, match=r"4 tokens beside a past.* has 2: give calib.batch_size=1"):
        to_batches(arrays, spec, 4)
    singles = to_batches(arrays, spec, 1)
    whole = run(path, fed(path, ids).feeds, "logits")[0]
    for row, batch in enumerate(singles):
        np.testing.assert_allclose(run(path, batch.feeds, "logits")[0][0], whole[row, 6:], atol=1e-5)
    both = {name: np.concatenate([batch.feeds[name] for batch in singles]) for name in singles[0].feeds}
    with pytest.raises(Exception, match="batch"):
        run(path, both)
    (last,) = to_batches({"input_ids": ids[:, 6:7], **past}, spec, 2)  # one token a sample is what it is made for
    np.testing.assert_allclose(run(path, last.feeds, "logits")[0][:, 0], whole[:, 6], atol=1e-5)


FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


@pytest.mark.parametrize(
    ("name", "dtype", "dims", "shape"),
    [
        ("past_key_values.0.key", np.float32, ("batch", 4, "past", 8), (2, 4, 0, 8)),
        ("past_key_values.0.value", np.float16, ("batch", "past_sequence_length", 4, 8), (2, 0, 4, 8)),
        ("past_key_0", ml_dtypes.bfloat16, (1, 4, "past_len", 8), (1, 4, 0, 8)),
        ("past_3", np.float32, (2, "batch_size", 4, "past", 8), (2, 2, 4, 0, 8)),
        ("past_key_values.0", np.float32, ("batch", "past", 16), (2, 0, 16)),
        ("past.1.value", np.float32, ("s0", 4, "s1", 8), (2, 4, 0, 8)),
        ("key_cache.1", np.int8, (None, None, 4, 8), (2, 0, 4, 8)),
        ("past.0.conv", np.float32, ("batch_size", 64, 3), (2, 64, 3)),
        ("past.0.recurrent", np.float32, ("batch_size", 4, 8, 8), (2, 4, 8, 8)),
    ],
)  # fmt: skip
def test_shapes_of_empty_caches(name, dtype, dims, shape):
    assert is_cache(name)
    cache = empty_cache(name, np.dtype(dtype), dims, 2)
    assert (cache.shape, cache.dtype) == (shape, np.dtype(dtype))
    assert not cache.any()


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        (("batch", "num_heads", "past", 8), r"\[batch, num_heads, past, 8\].*axis 1.*npz"),
        (("batch_size x num_heads", 8, "past"), "axis 0"),
        ((1, 4, 256, 8), "fixed length.*npz"),
        (("batch", 4, 256, 8), "fixed length"),
        (("batch", "past"), "2 dimensions"),
        (None, "unknown shape"),
    ],
)
def test_caches_that_cannot_be_made(dims, words):
    spec = InputSpec((ModelInput("input_ids", INT, ("b", "s")), ModelInput("past_key_values.0.key", FLOAT, dims)), None)
    with pytest.raises(JaxqError, match=f"past_key_values.0.key.*{words}"):
        to_batches({"input_ids": IDS}, spec, 2)
    if dims is not None:
        given = np.zeros([3 if isinstance(d, str) else d for d in dims], np.float32)
        if len(given) == 3:
            to_batches({"input_ids": IDS, "past_key_values.0.key": given}, spec, 3)


@pytest.mark.parametrize("name", ["inputs_embeds", "attention_mask", "encoder_hidden_states", "past_lengths"])
def test_inputs_that_nothing_tells_are_asked_for(name):
    """A float mask of four axes, embeddings, states of an encoder."""
    dims = ("b", 1, "q", "k") if name == "attention_mask" else ("b", "s", 8)
    spec = InputSpec((ModelInput("input_ids", INT, ("b", "s")), ModelInput(name, FLOAT, dims)), None)
    with pytest.raises(JaxqError, match=f"none for {name}: give an npz file"):
        to_batches({"input_ids": IDS}, spec, 2)
    given = np.zeros((3, *(1 if isinstance(d, str) else d for d in dims[1:])), np.float32)
    batches = to_batches({"input_ids": IDS, name: given}, spec, 2)
    assert [len(b.feeds[name]) for b in batches] == [2, 1]
    assert all(b.keep is not None and b.keep.all() for b in batches)


def test_positions_of_three_kinds_and_of_the_cache():
    spec = InputSpec(
        (
            ModelInput("input_ids", INT, ("b", "s")),
            ModelInput("position_ids", INT, (3, "b", "s")),
            ModelInput("cache_position", INT, ("s",)),
        ),
        None,
    )
    (batch,) = to_batches({"input_ids": IDS, "attention_mask": MASK}, spec, 3)
    counts = np.maximum(np.cumsum(MASK, axis=1) - 1, 0)
    np.testing.assert_array_equal(batch.feeds["position_ids"], np.stack([counts] * 3))
    np.testing.assert_array_equal(batch.feeds["cache_position"], np.arange(12))


def test_padding_is_moved_where_real_tokens_come_first():
    wanted = [ModelInput(name, INT, ("b", "s")) for name in ("input_ids", "attention_mask", "position_ids")]
    mask = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    ids = np.arange(15).reshape(3, 5)
    (batch,) = to_batches({"input_ids": ids, "attention_mask": mask}, InputSpec(tuple(wanted), None, True), 3)
    np.testing.assert_array_equal(batch.feeds["input_ids"], [[2, 3, 4, 0, 1], [5, 7, 8, 6, 9], [10, 11, 12, 13, 14]])
    np.testing.assert_array_equal(batch.feeds["attention_mask"], np.sort(mask)[:, ::-1])
    np.testing.assert_array_equal(batch.keep, np.sort(mask)[:, ::-1])
    np.testing.assert_array_equal(batch.feeds["position_ids"][:2], [[0, 1, 2, 2, 2], [0, 1, 2, 2, 2]])
    (untouched,) = to_batches({"input_ids": ids, "attention_mask": mask}, InputSpec(tuple(wanted), None), 3)
    np.testing.assert_array_equal(untouched.feeds["input_ids"], ids)
