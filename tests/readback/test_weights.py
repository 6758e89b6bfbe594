"""Every file that jaxq writes is read back: what it says is what was asked for, and its bytes give the same weights."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from jaxq.files.model_file import load_model
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.forms.registry import FORMS
from jaxq.pipeline.job import Gather, Rule
from jaxq.readback.found_weight import FoundWeight
from jaxq.readback.weights import read_back
from tests.support import models
from tests.support.foreign import expanded
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
