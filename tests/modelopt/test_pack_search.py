"""jaxq.int4 on wa_packs: maps, means and searches, against numpy in float64 on the tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxq import int4
from jaxq.errors import JaxqError
from jaxq.methods.grids import IDENTITY

C_IN = 24
BLOCK = 8


def weight(c_out: int, seed: int, c_in: int = C_IN) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(4, size=(c_in, c_out)) * 0.1).astype(np.float32)


def tokens(seed: int, shape: tuple[int, ...] = (2, 10, C_IN)) -> np.ndarray:
    """Normal activations, two channels of which are 20 times larger."""
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    x[..., [3, 17]] *= 20
    return x


def pack(act: str, w: np.ndarray, name: str, do_transpose: bool = False) -> tuple[Any, TensorProto, bool, int, str]:
    tensor = numpy_helper.from_array(np.ascontiguousarray(w.T) if do_transpose else w, name)
    return TensorProto(name=act), tensor, do_transpose, tensor.data_type, f"/{name}/MatMul"


class Recorded:
    """A session that gives recorded activations and counts its runs."""

    def __init__(self, **values: list[np.ndarray]) -> None:
        self.values, self.asked = values, []

    def run(self, output_names: list[str], input_feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.asked.append(list(output_names))
        return [self.values[name][int(input_feed["index"])] for name in output_names]


def feeds(count: int) -> Iterator[dict[str, Any]]:
    """Inputs that can be read once."""
    return ({"index": i} for i in range(count))


W1, W2, W3 = weight(6, 1), weight(4, 2), weight(5, 3)
X, Y = [tokens(4), tokens(5)], [tokens(6), tokens(7)]
PACKS = [pack("x", W1, "w1"), pack("y", W3, "w3", do_transpose=True), pack("x", W2, "w2")]


def session() -> Recorded:
    return Recorded(x=X, y=Y)


def per_node(packs: Any = PACKS, clip: bool = False, zero: bool = False, block: int = BLOCK, **kwargs: Any) -> Any:
    places: list[Any] = [None] * len(packs)
    return int4.run_awq_scale_search_per_node(
        packs, "", block, zero, session(), places, feeds(2), "", clip, False, [], {}, **kwargs
    )


def output_error(x: list[np.ndarray], w: np.ndarray, s: np.ndarray, **options: Any) -> float:
    """Mean squared output error per element of ``w`` scaled by ``s``, quantized and applied to ``x / s``."""
    block = options.pop("block", BLOCK)
    q, scale, zp = int4.quant_tensor((w * s[:, None]).astype(np.float32), block, **options)
    dq = np.asarray(int4.dq_tensor(q, scale, block, zp), np.float64)
    rows = np.concatenate([array.reshape(-1, len(w)) for array in x]).astype(np.float64)
    return float(np.mean((rows @ w.astype(np.float64) - (rows / s) @ dq) ** 2))


def test_maps() -> None:
    maps = int4.get_act_to_weight_map_and_act_to_wa_pack_map([PACKS[0], PACKS[1][:4], PACKS[2]])
    by_pack, dims = maps
    assert by_pack is maps.act_to_wa_pack and dims is maps.act_to_weight
    assert by_pack == {"x": [0, 2], "y": [1]}
    assert dims == {"x": [(24, 6), (24, 4)], "y": [(5, 24)]}


def test_maps_know_transposed_weights() -> None:
    """Of weights stored as [c_out, c_in] and as [c_in, c_out], c_in has to agree; their first dimensions need not."""
    mixed = [pack("x", W1, "w1"), pack("x", W2, "w2", do_transpose=True)]
    assert int4.get_act_to_weight_map_and_act_to_wa_pack_map(mixed).act_to_wa_pack == {"x": [0, 1]}
    with pytest.raises(JaxqError, match="'w3' has 12 input channels"):
        int4.get_act_to_weight_map_and_act_to_wa_pack_map([pack("x", W1, "w1"), pack("x", weight(3, 1, 12), "w3")])
    with pytest.raises(JaxqError, match="matrices"):
        int4.get_act_to_weight_map_and_act_to_wa_pack_map([pack("x", W1[None], "w1")])


def test_means_of_a_subgraph() -> None:
    packs = [pack("x", W1, "w1"), pack("x", W2, "w2", do_transpose=True)]
    x_mean, w_mean = int4.get_x_w_mean_for_subgraph(packs, [0, 1], "", X[0], BLOCK)
    np.testing.assert_allclose(x_mean, np.abs(X[0]).mean(axis=(0, 1)), rtol=1e-6)
    blocks = np.abs(np.concatenate([W1, W2], axis=1)).reshape(3, BLOCK, 10)
    want = (blocks / blocks.max(axis=1, keepdims=True)).mean(axis=2).ravel()
    np.testing.assert_allclose(w_mean, want, rtol=1e-6)
    _, whole = int4.get_x_w_mean_for_subgraph(packs, [0], "", X[0], -1)
    np.testing.assert_allclose(whole, int4.get_weight_scale(W1), rtol=1e-6)
    listed, _ = int4.get_x_w_mean_for_subgraph(packs, [0], "", X[0].tolist(), -1)
    np.testing.assert_array_equal(listed, x_mean)
    for indices, x in (([], X[0]), ([0], X[0][..., :5])):
        with pytest.raises(JaxqError, match="cannot read"):
            int4.get_x_w_mean_for_subgraph(packs, indices, "", x, BLOCK)


def test_external_data(tmp_path: Path) -> None:
    """Weights in a file beside the model, as a large augmented model has them."""
    graph = helper.make_graph([], "g", [], [], initializer=[numpy_helper.from_array(W1, "w1")])
    path = tmp_path / "augmented.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    tensor = onnx.load(path, load_external_data=False).graph.initializer[0]
    assert not tensor.raw_data
    packs = [(TensorProto(name="x"), tensor, False, 1)]
    for where in (path, str(path)):
        _, got = int4.get_x_w_mean_for_subgraph(packs, [0], where, X[0], BLOCK)
        np.testing.assert_array_equal(got, int4.get_weight_scale(W1, BLOCK))


@pytest.mark.parametrize(
    "arguments", [{}, {"zero": True}, {"block": 7}, {"block": -1}, {"precision_info": {"w1": 8, "w3": 3}}]
)
def test_per_node_losses(arguments: dict[str, Any]) -> None:
    helpers, ratios = per_node(**arguments, awqlite_alpha_step=0.5)
    assert ratios == {}
    bits = arguments.get("precision_info", {})
    cases = (("w1", W1, X), ("w3", W3, Y), ("w2", W2, X))
    for search, (name, w, x) in zip(helpers, cases, strict=True):
        block = C_IN if bits.get(name) == 8 or arguments.get("block") == -1 else arguments.get("block", BLOCK)
        assert search.block_size == block
        assert list(search.loss) == [IDENTITY, 0.0, 0.5, 1.0]
        act, mean = np.concatenate(x).reshape(-1, C_IN), int4.get_weight_scale(w, block)
        for alpha, loss in search.loss.items():
            s = np.asarray(int4.get_scale(int4.get_act_scale(act), mean, alpha))
            options = {"num_bits": bits.get(name, 4), "use_zero_point": arguments.get("zero", False)}
            assert loss == pytest.approx(output_error(x, w, s, block=block, **options), rel=2e-3)
        assert search.best_alpha == min(search.loss, key=search.loss.__getitem__)
        best = int4.get_scale(search.act_scale, search.weight_scale, search.best_alpha)
        np.testing.assert_array_equal(search.best_scale, best)


def test_the_search_beats_round_to_nearest() -> None:
    """With channels of large activations some scale is better than none."""
    helpers, _ = per_node()
    for search in helpers:
        assert search.loss[search.best_alpha] < 0.8 * search.loss[IDENTITY]


def test_no_scaling_where_none_helps() -> None:
    """Weights that 4 bits hold exactly: the identity's loss is zero."""
    exact = np.random.default_rng(0).integers(-7, 8, (C_IN, 4)).astype(np.float32)
    exact[::BLOCK] = 7
    helpers, _ = per_node([pack("x", exact, "w")])
    assert helpers[0].best_alpha == IDENTITY
    np.testing.assert_array_equal(helpers[0].best_scale, np.ones(C_IN))


def test_the_model_runs_once_an_input() -> None:
    counted = session()
    places: list[Any] = [None] * 3
    helpers, _ = int4.run_awq_scale_search_per_node(
        PACKS, "", BLOCK, False, counted, places, feeds(2), "", False, False, [], {}
    )
    assert helpers is places
    assert counted.asked == [["x", "y"]] * 2


def test_the_fast_path() -> None:
    data = [[x, y, x] for x, y in zip(X, Y, strict=True)]
    ratios: dict[str, np.ndarray] = {}
    fast, given = int4.run_awq_scale_search_per_node(
        PACKS, "", BLOCK, False, None, [None] * 3, [], "", True, True, data, ratios
    )
    assert given is ratios
    slow, want = per_node(clip=True)
    for mine, theirs in zip(fast, slow, strict=True):
        assert mine.loss == theirs.loss
    assert ratios.keys() == want.keys()
    assert data[0][0] is X[0]  # nothing is taken away


@pytest.mark.parametrize("block", [BLOCK, 7, -1])
def test_clip_ratios(block: int) -> None:
    """Flat as quant_tensor takes them; the output error, of the scaled activation, never grows."""
    helpers, ratios = per_node(clip=True, block=block)
    for search, name, w, x in zip(helpers, ("w1", "w3", "w2"), (W1, W3, W2), (X, Y, X), strict=True):
        size = C_IN if block == -1 else block
        assert ratios[name].shape == (w.shape[1] * -(-C_IN // size),)
        assert set(np.unique(ratios[name]).round(6)) <= {np.float32(a) for a in int4.AWQClipHelper(w, size).alphas}
        plain = output_error(x, w, search.best_scale, block=size)
        clipped = output_error(x, w, search.best_scale, block=size, alpha=ratios[name])
        assert clipped <= plain * (1 + 1e-5)
        assert (ratios[name] < 1).any()
    _, batched = per_node(clip=True, block=block, awqclip_bsz_col=3)
    for name, flat in batched.items():
        np.testing.assert_array_equal(flat, ratios[name])


def test_clip_options() -> None:
    _, ratios = per_node(clip=True, awqclip_alpha_min=0.8, awqclip_alpha_step=0.1)
    values = {round(float(value), 6) for flat in ratios.values() for value in flat}
    assert values <= {0.8, 0.9, 1.0} and len(values) > 1


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(dtype: Any) -> None:
    """Losses of half-precision weights and activations are finite and above 0."""
    small, large = (W1 * 1e-2).astype(dtype), [(x * 500).astype(dtype) for x in X]
    helpers, _ = int4.run_awq_scale_search_per_node(
        [pack("x", small, "w")], "", BLOCK, False, Recorded(x=large), [None], feeds(2), "", False, False, [], {}
    )
    assert all(0 < loss < np.inf for loss in helpers[0].loss.values())
    s = np.asarray(helpers[0].best_scale)
    want = output_error([x.astype(np.float32) for x in large], small.astype(np.float32), s)
    assert helpers[0].loss[helpers[0].best_alpha] == pytest.approx(want, rel=1e-2)


def per_subgraph(**kwargs: Any) -> list[Any]:
    return int4.run_awq_scale_search_per_subgraph(
        PACKS, "", BLOCK, False, session(), [None] * 3, feeds(2), "", **kwargs
    )


@pytest.mark.parametrize("bits", [{}, {"w1": 8, "w2": 4}])
def test_siblings_are_searched_together(bits: dict[str, int]) -> None:
    helpers = per_subgraph(awqlite_alpha_step=0.5, precision_info=bits)
    first, alone, second = helpers
    assert first is not second and first.loss == second.loss and first.loss is not second.loss
    np.testing.assert_array_equal(first.best_scale, second.best_scale)
    blocks = C_IN if bits else BLOCK, BLOCK
    assert (first.block_size, second.block_size) == blocks
    means = [int4.get_weight_scale(w, block) for w, block in zip((W1, W2), blocks, strict=True)]
    np.testing.assert_allclose(first.weight_scale, 0.6 * means[0] + 0.4 * means[1], rtol=1e-5)
    for alpha, loss in first.loss.items():
        s = np.asarray(int4.get_scale(first.act_scale, first.weight_scale, alpha))
        errors = [
            output_error(X, w, s, block=block, num_bits=bits.get(name, 4))
            for name, w, block in zip(("w1", "w2"), (W1, W2), blocks, strict=True)
        ]
        assert loss == pytest.approx(0.6 * errors[0] + 0.4 * errors[1], rel=2e-3)
    single, _ = per_node([PACKS[1]], awqlite_alpha_step=0.5)
    assert alone.loss == pytest.approx(single[0].loss)


def test_an_onnxruntime_session() -> None:
    ort = pytest.importorskip("onnxruntime")
    nodes = [helper.make_node("Relu", ["a"], ["x"]), helper.make_node("MatMul", ["x", "w1"], ["out"])]
    widths = {"a": C_IN, "x": C_IN, "out": 6}
    a, x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c]) for name, c in widths.items())
    graph = helper.make_graph(nodes, "g", [a], [out, x], initializer=[numpy_helper.from_array(W1, "w1")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    running = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = [{"a": array.reshape(-1, C_IN)} for array in X]
    packs = [(x, graph.initializer[0], False, 1, "MatMul")]
    helpers = int4.run_awq_scale_search_per_subgraph(packs, "", BLOCK, False, running, [None], inputs, "")
    np.testing.assert_allclose(helpers[0].act_scale, np.maximum(np.concatenate(X), 0).mean(axis=(0, 1)), rtol=1e-5)


def bad(*, packs: Any = PACKS, given: Any = None, inputs: Any = (), places: int = 3, **kwargs: Any) -> None:
    int4.run_awq_scale_search_per_node(
        packs, "", BLOCK, False, given, [None] * places, inputs, "", True, False, [], {}, **kwargs
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: bad(alpha_step=0.1), "unknown option alpha_step.*precision_info"),
        (lambda: per_subgraph(layer_info={}), "unknown option layer_info"),
        (lambda: bad(given=session(), places=2), "2 places for 3 packs"),
        (bad, "session is None"),
        (lambda: bad(given=session()), "no calibration input"),
        (lambda: bad(given=Recorded(x=[X[0][..., :5]], y=Y), inputs=feeds(1)), "24 channels"),
        (lambda: bad(given=Recorded(x=[X[0] * np.nan], y=Y), inputs=feeds(1)), "NaN"),
        (lambda: bad(given=session(), inputs=feeds(1), awqlite_alpha_step=0), "alpha_step is 0"),
        (lambda: bad(given=session(), inputs=feeds(1), awqclip_bsz_col=0), "awqclip_bsz_col is 0"),
        (lambda: bad(given=session(), inputs=feeds(1), precision_info={"w1": 1}), "num_bits is 1"),
        (lambda: bad(given=session(), awqlite_alpha_step="x"), "awqlite_alpha_step is 'x': give a number"),
        (lambda: bad(given=session(), awqclip_bsz_col=5.5), "awqclip_bsz_col is 5.5"),
        (lambda: bad(packs=[PACKS[0], (1, 2), PACKS[2]], given=session()), "pack 1 is not"),
        (lambda: bad(packs=[PACKS[0], None, PACKS[2]], given=session()), "pack 1 is not"),
        (lambda: bad(packs=[("x", *PACKS[0][1:])] * 3, given=session()), "pack 0 has an activation of type str"),
        (lambda: int4.get_act_to_weight_map_and_act_to_wa_pack_map([("x", W1, False, 1)]), "pack 0 is not"),  # pyright: ignore[reportArgumentType]
        (lambda: int4.get_x_w_mean_for_subgraph(PACKS, [9], "", X[0], BLOCK), "wa_pack_idx_list has 9"),
        (lambda: int4.get_x_w_mean_for_subgraph(PACKS, ["x"], "", X[0], BLOCK), "wa_pack_idx_list is 'x'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_refused(call: Any, text: str) -> None:
    with pytest.raises(JaxqError, match=text):
        call()


def test_bad_options_are_refused_before_the_model_runs() -> None:
    counted = session()
    options: dict[str, Any] = {"awqlite_alpha_step": 0, "awqclip_alpha_min": 2, "precision_info": {"w2": 9}}
    for wrong in options.items():
        with pytest.raises(JaxqError):
            bad(given=counted, inputs=feeds(2), **dict([wrong]))
    assert counted.asked == []


def test_missing_activations() -> None:
    for data, text in (([[None, Y[0], X[0]]], "missing"), ([], "no calibration")):
        with pytest.raises(JaxqError, match=text):
            int4.run_awq_scale_search_per_node(PACKS, "", BLOCK, False, None, [None] * 3, [], "", False, True, data, {})
