"""Every file that jaxq writes is read back: what it says is what was asked for, and its bytes give the same weights."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from jaxq.errors import JaxqError
from jaxq.files.model_file import load_model, save_model
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.forms.registry import FORMS
from jaxq.pipeline.job import Gather, Rule
from jaxq.readback.float_model import float_model
from jaxq.readback.found_weight import FoundWeight
from jaxq.readback.weights import read_back, read_weights
from tests.support import models
from tests.support.forms import GROUPS, NAMES, every_reader, every_weight, in_place, pairings
from tests.support.models import FFN, HIDDEN, build, node, tokens, value, weight
from tests.support.running import RUNTIME, quantize, relative, run, save

WIDER = {"trt": "dq", "trt_qdq": "qdq"}
"""What INT8 of TensorRT's forms is: standard ONNX."""

WHOLE = [(form, fmt, np.float32) for form in FORMS for fmt in pairings(form)]
NARROW = [make_format("int4", 32, scale_dtype="float16"), make_format("uint4", 16, scale_dtype=FLOAT8)]
CASTING = [form for form in FORMS if FORMS[form].casts and "int4" in FORMS[form].block_sizes]
WHOLE += [(form, fmt, np.float32) for form in CASTING for fmt in NARROW]
HALF = [(form, fmt, np.float16) for form in FORMS for fmt in pairings(form) if fmt.dtype in ("uint4", "nvfp4", "mxfp8")]
FILES = [pytest.param(f, fmt, t, id=f"{f} {fmt} {t.__name__}") for f, fmt, t in WHOLE + HALF]


def stored_dtype(form: str, fmt: WeightFormat) -> str:
    """What a file can say of a dtype: integers of 2, 4 and 8 bits."""
    if not isinstance(fmt, IntegerFormat):
        return fmt.dtype
    bits = 2 if fmt.num_bits == 2 and form == "matmulnbits" else fmt.code_bits
    return f"{'u' if fmt.use_zero_point else ''}int{bits}"


def round_trips(fmt: WeightFormat, dtype: type) -> dict[str, np.ndarray]:
    """The weights of `every_reader` after quantization; siblings together, as they share NVFP4's scale."""
    weights, found = every_weight(dtype), {}
    for names in GROUPS:
        back = round_trip(fmt, np.concatenate([weights[name] for name in names], axis=1))
        found |= dict(zip(names, np.split(back, len(names), axis=1), strict=True))
    return found


def round_trip(fmt: WeightFormat, w: np.ndarray) -> np.ndarray:
    """``w`` [c_in, c_out] after quantization, in its own type's numbers."""
    back = fmt.of_weights(str(w.dtype)).round_trip(jnp.asarray(w))
    return np.asarray(back).astype(w.dtype).astype(np.float32)


def expanded(path: Path) -> Path:
    """The file with float weights in place of its quantized ones."""
    model = load_model(path)
    float_model(model)
    target = path.with_name(f"{path.stem}.float.onnx")
    save_model(model, target, external_above=1 << 30)
    onnx.checker.check_model(str(target), full_check=True)
    assert not read_weights(load_model(target))
    assert not {n.domain for n in onnx.load(target).graph.node} - {""}
    assert [o.domain for o in onnx.load(target).opset_import] == [""]
    return target


def by_name(path: Path) -> dict[str, FoundWeight]:
    found = read_back(load_model(path))
    assert not found.unread
    assert len({w.name for w in found.weights}) == len(found.weights)
    return {w.name: w for w in found.weights}


@pytest.mark.parametrize(("form", "fmt", "dtype"), FILES)
def test_a_file_reads_back(form, fmt, dtype, tmp_path):
    proto, target = every_reader(dtype), tmp_path / "out.onnx"
    layers = quantize(save(proto, tmp_path), target, fmt=fmt, form=form).layers
    found, expected = by_name(target), round_trips(fmt, dtype)
    assert set(found) == set(NAMES)
    for layer in layers:
        w = found[layer.name]
        said = WIDER.get(form, form) if fmt.dtype == "int8" else form
        assert (w.form, w.dtype, w.block_size) == (said, stored_dtype(form, fmt), fmt.block_size)
        assert w.shape == (layer.c_in, layer.c_out) == (FFN, 32)
        assert len(w.nodes) == len(w.ops) == len(layer.nodes)
        assert w.float_dtype.numpy() == dtype
        np.testing.assert_array_equal(w.dequantize(), expected[layer.name])
    if FORMS[form].opset >= 23 and RUNTIME < (1, 25):
        return
    feeds, limit = {"x": tokens(5, FFN).astype(dtype)}, 1e-6 if dtype == np.float32 else 2e-3
    got = run(expanded(target), feeds)
    for a, b in zip(got, run(in_place(proto, expected), feeds), strict=True):
        assert relative(a, b) < limit
    if FORMS[form].runs:
        for a, b in zip(run(target, feeds), got, strict=True):
            assert relative(a, b) < limit


def linear(rows: int, columns: int) -> onnx.ModelProto:
    x = value("x", ("n", rows))
    return build([node("MatMul", "x w", "y")], {"w": weight(rows, columns)}, {"y": ("n", columns)}, [x])


FIRST = [(form, *next(iter(facts.block_sizes.items()))) for form, facts in FORMS.items()]
FLOATS = [("portable", "mxfp4", (32,)), ("portable", "mxfp8", (32,)), ("mx_standard", "mxfp4", (32,))]


@pytest.mark.parametrize(("form", "dtype", "sizes"), [*FIRST, *FLOATS], ids=str)
@pytest.mark.parametrize("shape", [(37, 29), (1, 3)], ids=str)
def test_odd_shapes(form, dtype, sizes, shape, tmp_path):
    target, fmt = tmp_path / "out.onnx", make_format(dtype, sizes[-1])
    quantize(save(linear(*shape), tmp_path), target, fmt=fmt, form=form, external_above=0)
    w = by_name(target)["w"]
    assert (w.shape, w.block_size) == (shape, sizes[-1])
    np.testing.assert_array_equal(w.dequantize(), round_trip(fmt, weight(*shape)))
    if FORMS[form].opset < 23 or RUNTIME >= (1, 25):
        feeds = {"x": tokens(3, shape[0])}
        (got,) = run(expanded(target), feeds)
        assert relative(got, feeds["x"] @ w.dequantize()) < 1e-6


def lookup(rows: int, columns: int) -> onnx.ModelProto:
    """A table whose rows are looked up, and a product."""
    weights = {"table": weight(rows, columns), "w": weight(columns, 32)}
    nodes = [node("Gather", "table ids", "e"), node("MatMul", "e w", "y")]
    return build(nodes, weights, {"y": ("n", 32)}, [value("ids", ("n",), TensorProto.INT64)])


TABLES = [
    (form, axis, dtype, facts.block_sizes[dtype][-1])
    for form, facts in FORMS.items()
    for axis in facts.gather_axes
    for dtype in ("int4", "uint4", "int8", "uint8", "mxfp8")
    if dtype in facts.block_sizes
]


@pytest.mark.parametrize(("form", "axis", "dtype", "block_size"), TABLES)
def test_tables_of_gather(form, axis, dtype, block_size, tmp_path):
    target, fmt = tmp_path / "out.onnx", make_format(dtype, block_size)
    source = save(lookup(37, 51), tmp_path)
    quantize(source, target, fmt=fmt, form=form, gather=Gather(axis, fmt))
    found, table = by_name(target), weight(37, 51)
    w = found["table"]
    assert (w.dtype, w.block_size, w.shape) == (dtype, block_size, (37, 51))
    assert w.axis == (axis if block_size > 0 else 1 - axis)
    expected = round_trip(fmt, table.T).T if axis else round_trip(fmt, table)
    np.testing.assert_array_equal(w.dequantize(), expected)
    feeds = {"ids": np.arange(37)}
    (got,) = run(expanded(target), feeds)
    assert relative(got, expected @ found["w"].dequantize()) < 1e-6
    if FORMS[form].runs:
        assert relative(run(target, feeds)[0], got) < 1e-6


@pytest.mark.parametrize("form", ["dq", "matmulnbits", "trt", "qdq"])
def test_copies_of_a_shared_weight_are_one(form, tmp_path):
    target = tmp_path / "out.onnx"
    (layer,) = quantize(save(models.shared(), tmp_path), target, form=form).layers
    (w,) = by_name(target).values()
    assert len(w.nodes) == len(w.places) == 2
    assert w.copies == (1 if form == "qdq" else 2)
    assert w.nbytes == (layer.nbytes if form != "qdq" else HIDDEN * HIDDEN * 5 // 8)
    expanded(target)


@pytest.mark.parametrize(
    ("form", "fmt", "other"),
    [
        ("dq", IntegerFormat(32), IntegerFormat(-1, num_bits=8)),
        ("matmulnbits", IntegerFormat(16, num_bits=2), IntegerFormat(64, use_zero_point=True)),
        ("portable", make_format("nvfp4", 16), make_format("mxfp8", 32)),
        ("trt", IntegerFormat(128), make_format("mxfp8", 32)),
    ],
)
def test_mixed_formats(form, fmt, other, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.mlp(), tmp_path), target, fmt=fmt, form=form, rules=(Rule(("down",), other),))
    found = by_name(target)
    for name, each in (("up", fmt), ("down", other)):
        w = found[name]
        assert (w.dtype, w.block_size) == (each.dtype, each.block_size)
        np.testing.assert_array_equal(w.dequantize(), round_trip(each, weight(*w.shape)))


@pytest.mark.parametrize("name", ["mlp", "attention", "conditional", "embedding", "listed"])
def test_float_models_give_what_the_file_gives(name, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.MODELS[name](), tmp_path), target)
    feeds = {"ids": np.arange(12).reshape(2, 6)} if name == "embedding" else {"x": tokens(2, 6, HIDDEN)}
    assert relative(*run(target, feeds), *run(expanded(target), feeds)) < 1e-6


def test_a_model_of_floats_has_nothing(tmp_path):
    path = save(models.mlp(), tmp_path)
    found = read_back(load_model(path))
    assert (found.weights, found.unread, found.used) == ((), (), frozenset())
    assert onnx.load(expanded(path)).graph.node == onnx.load(path).graph.node


# Files that jaxq did not write.


def foreign(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], **outputs: int) -> onnx.ModelProto:
    """A model of ``x`` [n, 32] with operators of onnxruntime's domain, and the ranks of its outputs."""
    outs = [value(name, (*"abc"[: rank - 1], 32)) for name, rank in (outputs or {"y": 2}).items()]
    graph = helper.make_graph(nodes, "foreign", [value("x", ("n", 32))], outs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def tensor(name: str, array: np.ndarray, kind: int | None = None) -> onnx.TensorProto:
    if kind is None:
        return onnx.numpy_helper.from_array(array, name)
    return helper.make_tensor(name, kind, array.shape, array.ravel())


def codes(*shape: int, low: int = -8, high: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape)


SCALES = (1 + np.arange(64, dtype=np.float32)).reshape(2, 32) / 64


def test_a_weight_that_is_read_as_a_table_and_transposed(tmp_path):
    """Tied embeddings: the codes are counted once."""
    tensors = [tensor("q", codes(32, 32), TensorProto.INT8), tensor("s", SCALES[0])]
    nodes = [
        node("DequantizeLinear", "q s", "w", axis=0),
        node("Transpose", "w", "head", perm=[1, 0]),
        node("Cast", "x", "ids", to=TensorProto.INT64),
        node("Gather", "w ids", "e"),
        node("MatMul", "x head", "y"),
    ]
    path = save(foreign(nodes, tensors, e=3, y=2), tmp_path)
    head, table = sorted(read_weights(load_model(path)), key=lambda w: w.ops, reverse=True)
    assert ((head.ops, head.transposed), (table.ops, table.transposed)) == ((("MatMul",), True), (("Gather",), False))
    w = codes(32, 32) * SCALES[0][:, None]
    np.testing.assert_array_equal(table.dequantize(), w)
    np.testing.assert_array_equal(head.dequantize(), w.T)
    assert head.tensors == table.tensors
    feeds = {"x": (np.arange(64).reshape(2, 32) % 32).astype(np.float32)}
    for a, b in zip(run(path, feeds), run(expanded(path), feeds), strict=True):
        assert relative(a, b) < 1e-6


@pytest.mark.parametrize("scales", [SCALES, SCALES.ravel()], ids=["in rows", "flat"])
@pytest.mark.parametrize("zero_points", [None, np.uint8, np.float32], ids=str)
def test_mat_mul_n_bits_of_others(scales, zero_points, tmp_path):
    """K = 32 in two blocks of 16, N = 32; zero points in bytes or as floats."""
    q, zp = codes(32, 32, low=0, high=16), codes(32, 2, low=0, high=16)
    packed = (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8).reshape(32, 2, 8)
    tensors = [tensor("q", packed), tensor("s", scales.reshape((32, 2) if scales.ndim > 1 else -1))]
    if zero_points is not None:
        held = zp if zero_points == np.float32 else zp[:, :1] | zp[:, 1:] << 4
        tensors.append(tensor("z", held.astype(zero_points)))
    names = " ".join(["x", *(t.name for t in tensors)])
    each = node("MatMulNBits", names, "y", domain="com.microsoft", K=32, N=32, bits=4, block_size=16)
    (w,) = read_weights(load_model(save(foreign([each], tensors), tmp_path)))
    assert (w.dtype, w.block_size) == ("int4" if zero_points is None else "uint4", 16)
    middle = np.repeat(zp, 16, axis=1) if zero_points is not None else 8
    expected = (q - middle) * np.repeat(scales.reshape(32, 2), 16, axis=1)
    np.testing.assert_array_equal(w.dequantize(), expected.astype(np.float32).T)


def test_a_table_in_bytes(tmp_path):
    """GatherBlockQuantized with two codes a byte: its middle is 8 where no zero points are."""
    q = codes(5, 32, low=0, high=16)
    tensors = [
        tensor("q", (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8)),
        tensor("s", SCALES.ravel()[:10].reshape(5, 2)),
    ]
    how = {"gather_axis": 0, "quantize_axis": 1, "block_size": 16, "bits": 4}
    nodes = [node("Cast", "x", "ids", to=TensorProto.INT64)]
    nodes.append(node("GatherBlockQuantized", "q ids s", "y", domain="com.microsoft", **how))
    path = save(foreign(nodes, tensors, y=3), tmp_path)
    (w,) = read_weights(load_model(path))
    assert (w.dtype, w.shape) == ("int4", (5, 32))
    expected = (q - 8) * np.repeat(SCALES.ravel()[:10].reshape(5, 2), 16, axis=1)
    np.testing.assert_array_equal(w.dequantize(), expected)
    feeds = {"x": (np.arange(32).reshape(1, 32) % 5).astype(np.float32)}
    assert relative(*run(path, feeds), *run(expanded(path), feeds)) < 1e-6


Q, S = tensor("q", codes(32, 32), TensorProto.INT4), tensor("s", SCALES)
DQ = node("DequantizeLinear", "q s", "w", axis=0, block_size=16)
PACKED = [tensor("b", np.zeros((32, 2, 8), np.uint8)), S, tensor("order", np.zeros(32, np.int32))]
NBITS = {"domain": "com.microsoft", "K": 32, "N": 32, "bits": 4, "block_size": 16}
NO_WEIGHTS = {
    "activation": (
        [node("QuantizeLinear", "x one", "c"), node("DequantizeLinear", "c one", "y")],
        [tensor("one", np.array(1, np.float32))],
        "when the model runs",
        0,
    ),
    "another reader": ([DQ, node("Add", "x w", "y")], [Q, S], "read by Add as input 1", 512),
    "first input": ([DQ, node("MatMul", "w x", "y")], [Q, S], "read by MatMul as input 0", 512),
    "something between": ([DQ, node("Mul", "w s2", "v"), node("MatMul", "x v", "y")], [Q, S], "Mul computes", 512),
    "g_idx": ([node("MatMulNBits", "x b s  order", "y", **NBITS)], PACKED, "g_idx", 512),
    "K": ([node("MatMulNBits", "x b s", "y", **NBITS | {"K": 64})], PACKED[:2], "K=64", 512),
    "another operator": (
        [node("MatMulBnb4", "x b s", "y", K=32, N=32, block_size=32, quant_type=1, domain="com.microsoft")],
        PACKED[:2],
        "UINT8 that is read by MatMulBnb4 as input 1",
        512,
    ),
}


def test_weights_that_are_not_the_same_are_no_copies(tmp_path):
    """Names count for nothing: these two look like copies of one weight."""
    names = ("w_quantized", "w_quantized_0")
    tensors = [tensor(name, codes(32, 32, seed=i), TensorProto.INT4) for i, name in enumerate(names)]
    nodes = []
    for i, name in enumerate(names):
        nodes.append(node("DequantizeLinear", f"{name} s", f"w{i}", axis=0, block_size=16))
        nodes.append(node("MatMul", f"x w{i}", f"y{i}"))
    found = read_weights(load_model(save(foreign(nodes, [*tensors, S], y0=2, y1=2), tmp_path)))
    assert [(w.name, w.copies, len(w.nodes)) for w in found] == [("w", 1, 1), ("w", 1, 1)]


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_what_is_not_understood_is_listed(name, tmp_path):
    nodes, tensors, reason, nbytes = NO_WEIGHTS[name]
    if name == "g_idx":
        nodes[0].input[:] = ["x", "b", "s", "", "order"]
    path = save(foreign(nodes, [*tensors, tensor("s2", np.array([2], np.float32))]), tmp_path)
    found = read_back(load_model(path))
    assert found.weights == ()
    (unread,) = found.unread
    assert reason in unread.reason
    assert unread.nbytes == nbytes
    model = load_model(path)
    float_model(model)
    assert [n.op_type for n in model.graph] == [n.op_type for n in nodes]


def test_other_pairs_of_numbers_are_not_understood(tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.mlp(), tmp_path), target, fmt=make_format("nvfp4", 16), form="portable")
    proto = onnx.load(target)
    (pairs,) = [t for t in proto.graph.initializer if t.name == "jaxq/e2m1_pairs"]
    pairs.CopyFrom(tensor(pairs.name, onnx.numpy_helper.to_array(pairs) * 2))
    found = read_back(load_model(save(proto, tmp_path, "other.onnx")))
    assert found.weights == ()
    assert {u.reason for u in found.unread} == {"bytes that stand for other numbers than two E2M1 codes"}


FOREIGN = Path(__file__).parent / "foreign"
"""A model and what other tools made of it: experiments/parity/make_foreign.py."""

W, TABLE = ("w", (64, 12)), ("table", (6, 48))
WRITTEN = {
    "rtn": [("qdq", "int4", 32, *W)],
    "rtn_dq": [("dq", "int4", 32, *W)],
    "rtn_trt": [("trt_qdq", "int4", 32, *W)],
    "rtn_trt_dq": [("trt", "int4", 32, *W)],
    "awq_lite": [("dq", "int4", 32, *W)],
    "awq_clip": [("dq", "int4", 32, *W)],
    "columns": [("column_major", "int4", 32, *W)],
    "gather": [("dq", "int4", 32, *W), ("dq", "int4", 32, *TABLE)],
    "gather_trt": [("trt", "int4", 32, *W), ("trt", "int4", 32, *TABLE)],
    "layers_8bit": [("dq", "int8", -1, *W)],
    "layers_8bit_trt": [("trt", "int8", -1, *W)],
    "onnxruntime": [("matmulnbits", "int4", 32, *W), ("matmulnbits", "int4", 32, *TABLE)],
}


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_other_tools(name):
    path, floats = FOREIGN / f"{name}.onnx", initializers(FOREIGN / "float.onnx")
    found = read_back(load_model(path))
    assert not found.unread
    ordered = sorted(found.weights, key=lambda w: w.shape, reverse=True)
    said = [(w.form, w.dtype, w.block_size, w.shape) for w in ordered]
    assert said == [(form, dtype, block, shape) for form, dtype, block, _, shape in WRITTEN[name]]
    for w, (_, dtype, block, source, _) in zip(ordered, WRITTEN[name], strict=True):
        got, expected = w.dequantize(), floats[source]
        if (scale := initializers(path).get("w_awq_scale")) is not None:
            got = got * scale.T
        assert w.nbytes * 8 >= w.size * (8 if dtype == "int8" else 4)
        assert relative(got, expected) < (0.01 if dtype == "int8" else 0.15), block


BLOCKS_OF_SCALES = {
    (2, 32): (16, 0),
    (32, 2): (16, 1),
    (1, 32): (-1, 1),
    (32, 1): (-1, 0),
    (3, 32): (11, 0),
    (32, 32): (1, 1),
}


@pytest.mark.parametrize("shape", BLOCKS_OF_SCALES, ids=str)
@pytest.mark.parametrize("op", ["DequantizeLinear", "TRT_INT4DequantizeLinear"])
def test_blocks_that_only_the_scales_show(op, shape, tmp_path):
    """ModelOpt writes neither axis nor block size where it leaves the weight in float."""
    scales = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape) / 64
    nodes = [node(op, "q s", "w"), node("MatMul", "x w", "y")]
    (w,) = read_weights(load_model(save(foreign(nodes, [Q, tensor("s", scales)]), tmp_path)))
    assert (w.block_size, w.axis) == BLOCKS_OF_SCALES[shape]
    rows, columns = (np.arange(32) // -(-32 // n) for n in shape)
    np.testing.assert_array_equal(w.dequantize(), codes(32, 32) * scales[np.ix_(rows, columns)])


def broken(inputs: str = "q s", **attributes: int) -> list[onnx.NodeProto]:
    return [node("DequantizeLinear", inputs, "w", **attributes), node("MatMul", "x w", "y")]


BROKEN = {
    "no elements": (broken(), [tensor("q", np.zeros((0, 3), np.int8)), tensor("s", np.ones(3, np.float32))]),
    "block_size": (broken(axis=0, block_size=-1), [Q, S]),
    "axis": (broken(axis=7, block_size=16), [Q, S]),
    "two axes": (broken(), [Q, tensor("s", np.ones((2, 4), np.float32))]),
    "more scales than rows": (broken(), [Q, tensor("s", np.ones((40, 32), np.float32))]),
    "no scales": (broken("q"), [Q]),
    "no blocks": ([node("MatMulNBits", "x b s", "y", **NBITS | {"block_size": 0})], PACKED[:2]),
    "no columns": ([node("MatMulNBits", "x b s", "y", **NBITS | {"N": 0})], PACKED[:2]),
    "bits": ([node("GatherBlockQuantized", "b x s", "y", domain="com.microsoft", bits=0)], PACKED[:2]),
    "no inputs": ([node("GatherBlockQuantized", "", "y", domain="com.microsoft")], [Q]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_nodes_are_listed(name, tmp_path):
    found = read_back(load_model(save(foreign(*BROKEN[name]), tmp_path)))
    assert found.weights == ()
    assert found.unread
    assert all(u.reason for u in found.unread)


def test_scales_that_do_not_fit_are_refused(tmp_path):
    nodes = [DQ, node("MatMul", "x w", "y")]
    (w,) = read_weights(load_model(save(foreign(nodes, [Q, tensor("s", SCALES[:, :5])]), tmp_path)))
    with pytest.raises(JaxqError, match="weight 'q' has codes and scales that do not fit"):
        w.dequantize()
