"""Tied embeddings: one table that Gather and the last layer read is quantized once."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.errors import JaxqError
from jaxq.files.model_file import load_model
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.forms.registry import FORMS
from jaxq.pipeline.job import Gather
from jaxq.pipeline.outcome import Outcome
from jaxq.readback.float_model import float_model
from jaxq.readback.inspection import inspect_model
from jaxq.readback.weights import read_weights
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.forms import fused, run_form, skip_old
from tests.support.models import HIDDEN, tied
from tests.support.running import RUNTIME, initializers, quantize, relative, run, save, with_weights
from tests.support.unpacked import dequantized

IDS = {"ids": np.array([0, 39, 7, 7, 21])}
SHARED = pytest.mark.skipif(RUNTIME < (1, 23), reason="this onnxruntime has no GatherBlockQuantized of bytes")
HEADS = ("Transpose", "Gemm", "Transpose,Cast", "Cast,Transpose")


def cases() -> list:
    """Every form that holds tables blocked along rows, its dtypes and each kind of head."""
    found = []
    for form in (name for name, form in FORMS.items() if 1 in form.gather_axes):
        dtypes = [d for d in ("int4", "uint4", "int8", "int3") if d in FORMS[form].block_sizes]
        for i, head in enumerate(HEADS):
            dtype = dtypes[i % len(dtypes)]
            block = 32 if 32 in FORMS[form].block_sizes[dtype] else -1
            found.append((form, make_format(dtype, block), head))
        if FORMS[form].casts:
            found += [(form, make_format("int4", 32, scale_dtype=s), "Gemm") for s in ("float16", FLOAT8)]
    return [pytest.param(*case, id=f"{case[0]} {case[1].dtype} {case[1].scale_dtype} {case[2]}") for case in found]


def quantized(outcome: Outcome) -> list[str]:
    return [layer.name for layer in outcome.layers]


@pytest.mark.parametrize(("form", "fmt", "head"), cases())
def test_all_readers_see_the_same_numbers(form, fmt, head, tmp_path):
    if form == "matmulnbits" and RUNTIME < (1, 23):
        pytest.skip("this onnxruntime has no GatherBlockQuantized of bytes")
    kind = np.float16 if "Cast" in head else np.float32
    skip_old(form, fmt, kind)
    proto = tied(kind, head)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, form=form, gather=Gather(1, fmt), exclude=("w",))
    assert quantized(outcome) == ["table"]
    assert outcome.layers[0].note == "", "rounding to nearest scales nothing"
    assert outcome.layers[0].is_table
    onnx.checker.check_model(str(target), full_check=True)
    h, y, z = run_form(form, target, IDS)
    table = _one_table(target)
    expected = run(with_weights(proto, {"table": table}), IDS)
    tolerance = 1e-6 if kind == np.float32 else 1e-3  # the products' copy is not rounded to float16
    for got, want in zip((h, y, z), expected, strict=True):
        assert got.dtype == want.dtype
        assert relative(got, want) < tolerance


def _one_table(target) -> np.ndarray:
    """The table [rows, columns] that all copies in the file stand for."""
    found = read_weights(load_model(target))
    (table,) = [w.dequantize() for w in found if w.ops[0].startswith("Gather")]
    (product,) = [w.dequantize() for w in found if not w.ops[0].startswith("Gather")]
    np.testing.assert_allclose(product.T, table, rtol=1e-3 if found[0].float_dtype != found[1].float_dtype else 0)
    return table


@SHARED
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8", "int3"])
def test_one_copy_of_the_bytes_serves_both_operators(dtype, tmp_path):
    fmt = make_format(dtype, 32)
    proto = tied()
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    (layer, _) = quantize(source, target, form="matmulnbits", gather=Gather(1, fmt)).layers
    written = onnx.load(target)
    codes = [t.name for t in written.graph.initializer if "table" in t.name]
    assert codes == ["table_quantized", "table_scale"] + ["table_zero_point"] * dtype.startswith("u")
    zero_points = 40 * 2 * fmt.code_bits // 8 if dtype[0] == "u" else 0
    assert layer.nbytes == 40 * HIDDEN * fmt.code_bits // 8 + 40 * 2 * 4 + zero_points
    assert {n.op_type for n in written.graph.node} == {
        "GatherBlockQuantized", "MatMulNBits", "Relu", "Reshape",
    }  # fmt: skip
    weights = dequantized(written)  # the independent reader: it asserts that both operators read the same numbers
    expected = run(with_weights(proto, {"table": weights["table"], "w": weights["w"]}), IDS)
    for got, want in zip(run(target, IDS), expected, strict=True):
        assert relative(got, want) < 1e-6


@SHARED
@pytest.mark.parametrize(
    ("fmt", "columns"),
    [
        pytest.param(IntegerFormat(32), 80, id="ragged blocks"),
        pytest.param(IntegerFormat(32, use_zero_point=True), 96, id="zero points end within a byte"),
        pytest.param(IntegerFormat(32, 2), 64, id="2 bits"),
    ],
)
def test_bytes_that_differ_are_held_twice(fmt, columns, tmp_path):
    proto = tied(columns=columns)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    if fmt.num_bits == 2:
        skip_old("matmulnbits", fmt)
    quantize(source, target, form="matmulnbits", gather=Gather(1, fmt), exclude=("w",))
    written = onnx.load(target)
    assert len([t for t in written.graph.initializer if "table_quantized" in t.name]) == 2
    expected = run(with_weights(proto, {"table": _one_table(target)}), IDS)
    for got, want in zip(run(target, IDS), expected, strict=True):
        assert relative(got, want) < 1e-6


def test_the_product_of_the_default_form_is_fused(tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(tied(), tmp_path), target, gather=Gather(1, IntegerFormat(32)))
    assert fused(target)["com.microsoft:MatMulNBits"] == 2


@pytest.mark.parametrize("method", ["awq_lite", "awq_clip", "awq_full", "best"])
def test_moments_of_the_product_choose_clips_but_never_scale(method, tmp_path):
    """Gather reads the table unscaled; a sibling that reads the same activation is scaled without it."""
    source, target = save(tied(rows=64), tmp_path), tmp_path / "out.onnx"
    batches = [Batch({"ids": np.random.default_rng(0).integers(64, size=300)})]
    fmt: WeightFormat = IntegerFormat(32, 3)
    outcome = quantize(source, target, method, batches, fmt, gather=Gather(1, fmt))
    table, w = outcome.layers
    assert (table.name, w.name) == ("table", "w")
    assert table.alpha is None and table.loss is not None and table.loss_rtn is not None
    assert table.loss <= table.loss_rtn * (1 + 1e-6)
    assert (table.clip_min < 1) == (method != "awq_lite")
    assert table.note == ("a table of Gather too: not scaled" if method in ("awq_lite", "awq_full") else "")
    weights = dequantized(onnx.load(target))
    back = weights["w"]
    if w.alpha is not None:
        (factor,) = [a for n, a in initializers(onnx.load(target)).items() if "awq_factor" in n]
        back = factor[:, None] * weights["w"]
    expected = run(with_weights(tied(rows=64), {"table": weights["table"], "w": back}), IDS)
    for got, want in zip(run(target, IDS), expected, strict=True):
        assert relative(got, want) < 2e-6


@pytest.mark.parametrize(
    ("gather", "exclude", "reason"),
    [
        pytest.param(
            None, (), "a table that Gather and MatMul read: gather.axis=1 quantizes it once for both", id="no axis"
        ),
        pytest.param(
            Gather(0, IntegerFormat(32)), (),
            "a table that Gather and MatMul read: gather.axis=1 quantizes it once for both", id="other axis",
        ),
        pytest.param(
            Gather(1, IntegerFormat(32)), ("/y/*",),
            "excluded by the pattern '/y/*', with the table of Gather that it is too: method.exclude=[] quantizes both",
            id="excluded by the product's name",
        ),
    ],
)  # fmt: skip
def test_what_is_left_alone_says_what_to_give(gather, exclude, reason, tmp_path):
    outcome = quantize(save(tied(), tmp_path), tmp_path / "out.onnx", gather=gather, exclude=exclude)
    assert quantized(outcome) == ["w"]
    assert {d.name: d.reason for d in outcome.skipped} == {"table": reason}


def test_a_table_that_is_read_both_ways_round_is_left_alone(tmp_path):
    proto = tied(rows=HIDDEN)
    proto.graph.node.append(models.node("MatMul", "h table", "q"))
    proto.graph.output.append(models.value("q", ("n", HIDDEN)))
    outcome = quantize(save(proto, tmp_path), tmp_path / "out.onnx", gather=Gather(1, IntegerFormat(32)))
    assert outcome.skipped[0].reason == "shared by nodes that read it as it is and transposed"


def test_a_square_table_that_a_product_reads_as_it_is_is_blocked_along_axis_0(tmp_path):
    nodes = [models.node("Gather", "table ids", "e"), models.node("MatMul", "e table", "y")]
    weights = {"table": models.weight(HIDDEN, HIDDEN)}
    outputs = {"y": ("n", HIDDEN)}
    proto = models.build(nodes, weights, outputs, [models.value("ids", ("n",), onnx.TensorProto.INT64)])
    target = tmp_path / "out.onnx"
    quantize(save(proto, tmp_path), target, gather=Gather(0, IntegerFormat(32)))
    table = dequantized(onnx.load(target))["table"]
    assert relative(run(target, IDS)[0], run(with_weights(proto, {"table": table}), IDS)[0]) < 1e-6


def test_a_form_without_tables_is_refused_before_any_work(tmp_path):
    with pytest.raises(JaxqError, match="does not support tables of Gather blocked along axis 1"):
        quantize(save(tied(), tmp_path), tmp_path / "out.onnx", form="portable", fmt=make_format("mxfp4"),
                 gather=Gather(1, IntegerFormat(32)))  # fmt: skip


@SHARED
def test_what_is_shared_is_read_back_and_counted_once(tmp_path):
    source, target = save(tied(), tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, form="matmulnbits", gather=Gather(1, IntegerFormat(32)))
    inspection = inspect_model(target)
    assert not inspection.unread and not inspection.floats
    assert {(w.name, w.ops) for w in inspection.weights} == {
        ("table", ("GatherBlockQuantized",)),
        ("table", ("MatMulNBits",)),
        ("w", ("MatMulNBits",)),
    }
    assert inspection.quantized_bytes == sum(layer.nbytes for layer in outcome.layers)
    model = load_model(target)
    float_model(model)
    floats = ir.to_proto(model)
    assert not any("NBits" in n.op_type or "Quantized" in n.op_type for n in floats.graph.node)
    for got, want in zip(run(floats, IDS), run(target, IDS), strict=True):
        assert relative(got, want) < 1e-6
