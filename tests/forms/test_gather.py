"""Tables of Gather, such as embeddings: blocked along either axis, in every form that can."""

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.forms.registry import FORMS
from jaxq.pipeline.job import Gather
from jaxq.pipeline.outcome import Outcome
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.forms import fused, run_form, skip_old
from tests.support.models import HIDDEN, build, node, weight
from tests.support.running import quantize, relative, run, save
from tests.support.unpacked import dequantized

ROWS, COLUMNS = 40, 90  # ragged in blocks of 16 and above
IDS = {"ids": np.array([[0, 39, 7, 7], [1, -1, 38, 20]]), "others": np.array([3, 3, 11])}
DTYPES = ("int4", "uint4", "int8", "uint8")
BLOCK_SIZES = (32, 16, -1, 64, 128, 256)


def tables(dtype: type = np.float32) -> onnx.ModelProto:
    """A table that two nodes read, another one, and a weight."""
    nodes = [
        node("Gather", "table ids", "a"),
        node("Gather", "table others", "b"),
        node("Gather", "positions others", "c", axis=0),
        node("MatMul", "a w", "y"),
    ]
    weights = {"table": weight(ROWS, COLUMNS), "positions": weight(ROWS, COLUMNS, seed=1), "w": weight(COLUMNS, 32)}
    weights = {name: w.astype(dtype) for name, w in weights.items()}
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ins = [models.value(n, s, onnx.TensorProto.INT64) for n, s in (("ids", ("n", 4)), ("others", ("m",)))]
    outputs = {"a": ("n", 4, COLUMNS), "b": ("m", COLUMNS), "c": ("m", COLUMNS), "y": ("n", 4, 32)}
    return build(nodes, weights, outputs, ins, dtype=kind)


def cases() -> list:
    """Every form with all its dtypes, block sizes and axes, each once."""
    found = []
    for form in (name for name, form in FORMS.items() if form.gather_axes):
        block_sizes = FORMS[form].block_sizes
        dtypes = [d for d in DTYPES if d in block_sizes]
        axes = (-1, 1) if FORMS[form].gather_axes == (1,) else (0, 1, -1)
        for i, block in enumerate(BLOCK_SIZES + BLOCK_SIZES[:1]):
            dtype = dtypes[i % len(dtypes)]
            size = block if block in block_sizes[dtype] else block_sizes[dtype][0]
            kind = np.float16 if i in (3, 6) else np.float32
            found.append((form, make_format(dtype, size), axes[i % len(axes)], kind))
    found.append(("trt", make_format("mxfp8", 32), 0, np.float32))
    found.append(("trt", make_format("mxfp8", 32), 1, np.float16))
    return [pytest.param(*c, id=f"{c[0]} {c[1].dtype} {c[1].block_size} axis {c[2]} {c[3].__name__}") for c in found]


def round_trip(table: np.ndarray, fmt: WeightFormat, axis: int) -> np.ndarray:
    turned = table.T if axis % 2 else table
    back = np.asarray(fmt.of_weights(table.dtype.name).round_trip(jnp.asarray(turned)))
    return back.T if axis % 2 else back


@pytest.mark.parametrize(("form", "fmt", "axis", "dtype"), cases())
def test_a_table_gives_what_its_bytes_stand_for(form, fmt, axis, dtype, tmp_path):
    skip_old(form, fmt, dtype)
    proto = tables(dtype)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, form=form, exclude=("w",), gather=Gather(axis, fmt))
    assert [(x.name, x.dtype, x.block_size, x.is_table) for x in outcome.layers] == [
        ("table", fmt.dtype, fmt.block_size, True),
        ("positions", fmt.dtype, fmt.block_size, True),
    ]
    onnx.checker.check_model(str(target), full_check=True)
    held = dequantized(onnx.load(target))
    for i, name in enumerate(("table", "positions")):
        expected = round_trip(weight(ROWS, COLUMNS, seed=i, dtype=dtype), fmt, axis)
        np.testing.assert_allclose(held[name], expected, rtol=2**-22)
    a, b, c, y = run_form(form, target, IDS)
    assert {v.dtype for v in (a, b, c, y)} == {np.dtype(dtype)}
    tolerance = 1e-6 if dtype == np.float32 else 3e-3
    assert relative(a, held["table"][IDS["ids"]]) < tolerance
    assert relative(b, held["table"][IDS["others"]]) < tolerance
    assert relative(c, held["positions"][IDS["others"]]) < tolerance
    assert relative(y, a.astype(np.float64) @ weight(COLUMNS, 32).astype(dtype)) < tolerance


MATMULNBITS = [d for d in FORMS["matmulnbits"].block_sizes if d not in DTYPES]


@pytest.mark.parametrize("dtype", MATMULNBITS)
def test_the_form_matmulnbits_holds_tables_of_all_its_dtypes(dtype, tmp_path):
    source, target, fmt = save(tables(), tmp_path), tmp_path / "out.onnx", make_format(dtype, 32)
    skip_old("matmulnbits", fmt)
    quantize(source, target, form="matmulnbits", gather=Gather(1, fmt))
    onnx.checker.check_model(str(target), full_check=True)
    held = dequantized(onnx.load(target))
    np.testing.assert_allclose(held["table"], round_trip(weight(ROWS, COLUMNS), fmt, 1), rtol=2**-22)
    assert relative(run(target, IDS)[0], held["table"][IDS["ids"]]) < 1e-6


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_tables_of_onnxruntimes_operator_need_no_new_opset(opset, tmp_path):
    proto = tables()
    proto.opset_import[0].version = opset
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target, form="matmulnbits", gather=Gather(-1, IntegerFormat(32)))
    onnx.checker.check_model(str(target), full_check=True)
    assert onnx.load(target).opset_import[0].version == opset
    assert fused(target) == {"com.microsoft:GatherBlockQuantized": 3, "com.microsoft:MatMulNBits": 1}


def skipped(outcome: Outcome) -> dict[str, str]:
    return {d.name: d.reason for d in outcome.skipped}


def test_tables_are_left_alone_unless_asked_for(tmp_path):
    outcome = quantize(save(tables(), tmp_path), tmp_path / "out.onnx")
    assert [layer.name for layer in outcome.layers] == ["w"]
    reason = "a table that Gather reads: quantized where gather.axis is given"
    assert skipped(outcome) == {"table": reason, "positions": reason}


def test_excluded_tables_are_left_alone(tmp_path):
    gather = Gather(1, IntegerFormat(16))
    outcome = quantize(save(tables(), tmp_path), tmp_path / "out.onnx", exclude=("pos*", "/b/*"), gather=gather)
    assert [layer.name for layer in outcome.layers] == ["w"]
    assert skipped(outcome) == {
        "table": "excluded by the pattern '/b/*'",
        "positions": "excluded by the pattern 'pos*'",
    }


def tied() -> onnx.ModelProto:
    """A square table that Gather and MatMul read."""
    nodes = [node("Gather", "table ids", "e"), node("MatMul", "e table", "y"), node("MatMul", "e w", "z")]
    ids = models.value("ids", ("n",), onnx.TensorProto.INT64)
    weights = {"table": weight(HIDDEN, HIDDEN), "w": weight(HIDDEN, HIDDEN, seed=1)}
    return build(nodes, weights, {"y": ("n", HIDDEN), "z": ("n", HIDDEN)}, [ids])


def odd_gathers() -> onnx.ModelProto:
    """Tables of which columns, or single numbers, are gathered, or in which a stack lies."""
    nodes = [
        node("Gather", "columns ids", "a", axis=1),
        node("Gather", "vector ids", "b"),
        node("Gather", "stack ids", "c"),
        node("Gather", "rows ids", "d"),
    ]
    weights = {"columns": weight(32, 32), "vector": weight(32), "stack": weight(4, 8, 8), "rows": weight(32, 32)}
    outputs = {"a": (32, "n"), "b": ("n",), "c": ("n", 8, 8), "d": ("n", 32)}
    return build(nodes, weights, outputs, [models.value("ids", ("n",), onnx.TensorProto.INT64)])


@pytest.mark.parametrize(
    ("make", "quantized", "reasons"),
    [
        pytest.param(
            tied, ["w"], {"table": "Gather and MatMul read: gather.axis=0 quantizes it once"}, id="read by MatMul too"
        ),
        pytest.param(
            odd_gathers,
            ["rows"],
            {
                "columns": "Gather with axis=1",
                "vector": "a vector",
                "stack": "that Gather picks from by a computed index",
            },
            id="odd gathers",
        ),
    ],
)
def test_what_is_no_table_is_left_alone_with_its_reason(make, quantized, reasons, tmp_path):
    gather = Gather(1, IntegerFormat(16))
    outcome = quantize(save(make(), tmp_path), tmp_path / "out.onnx", gather=gather)
    assert [layer.name for layer in outcome.layers] == quantized
    found = skipped(outcome)
    assert set(found) == set(reasons)
    for name, part in reasons.items():
        assert part in found[name]


def test_a_table_has_no_loss_and_takes_no_part_in_the_search(tmp_path):
    """Tables are rounded to nearest whatever the method is; calibration sees the activations of products only."""
    source = save(tables(), tmp_path)
    gather = Gather(0, IntegerFormat(32, 8))
    outcome = quantize(source, tmp_path / "out.onnx", "awq_lite", [Batch(IDS)], gather=gather)
    layers = {layer.name: layer for layer in outcome.layers}
    assert [layer.name for layer in outcome.layers] == ["table", "positions", "w"]
    assert layers["table"].loss is None and layers["table"].alpha is None
    assert layers["w"].loss is not None
    assert (layers["table"].c_in, layers["table"].c_out) == (ROWS, COLUMNS)
    held = dequantized(onnx.load(tmp_path / "out.onnx"))
    np.testing.assert_allclose(held["table"], round_trip(weight(ROWS, COLUMNS), IntegerFormat(32, 8), 0), rtol=2**-22)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_report_counts_the_bytes_of_tables(dtype, tmp_path):
    source, target = save(tables(), tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, form="matmulnbits", exclude=("w",), gather=Gather(1, make_format(dtype, 16)))
    each = ROWS * COLUMNS * int(dtype[3:]) // 8 + ROWS * -(-COLUMNS // 16) * 4
    assert [layer.nbytes for layer in outcome.layers] == [2 * each, each]
