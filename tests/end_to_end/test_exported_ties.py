"""Ties of embedding and head as each exporter writes them become one quantized tensor."""

import numpy as np
import onnx
import pytest

from jaxq.files.model_file import load_model
from jaxq.formats.integers import FLOAT8
from jaxq.formats.registry import make_format
from jaxq.forms.registry import FORMS, find_form
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.dry_run import estimate
from jaxq.pipeline.job import Gather, Job, Rule
from jaxq.readback.inspection import inspect_model
from jaxq.readback.weights import read_weights
from jaxq.runtime.batches import Batch
from tests.support.forms import run_form, skip_old
from tests.support.running import RUNTIME, quantize, relative, run, save, with_weights
from tests.support.ties import EXPORTERS, HIDDEN, ROWS, exported, with_table
from tests.support.unpacked import dequantized

IDS = {"ids": np.array([0, 39, 7, 7, 21])}
INT4 = make_format("int4", 32)
SHARED = pytest.mark.skipif(RUNTIME < (1, 23), reason="this onnxruntime has no GatherBlockQuantized of bytes")
COPIES = ("builder, embeddings not shared", "torch legacy", "torch dynamo, constants folded")
FORMS_OF_TABLES = [name for name, form in FORMS.items() if 1 in form.gather_axes]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("form", FORMS_OF_TABLES)
def test_every_form_gives_both_readers_the_same_numbers(form, exporter, tmp_path):
    if form == "matmulnbits" and RUNTIME < (1, 23):
        pytest.skip("this onnxruntime has no GatherBlockQuantized of bytes")
    skip_old(form, INT4)
    proto = exported(exporter)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, form=form, gather=Gather(1, INT4), exclude=("w",))
    (layer,) = outcome.layers
    assert layer.is_table and (layer.c_in, layer.c_out) == (HIDDEN, ROWS)
    assert layer.note == "", "rounding to nearest scales nothing"
    assert len(layer.nodes) == 2
    assert len(outcome.notices) == (exporter in COPIES)
    assert {d.name for d in outcome.skipped} == {"w"}
    onnx.checker.check_model(str(target), full_check=True)
    (table,) = [w.dequantize() for w in read_weights(load_model(target)) if w.ops[0].startswith("Gather")]
    expected = run(with_weights(proto, with_table(proto, table)), IDS)
    assert relative(run_form(form, target, IDS)[0], expected[0]) < 1e-6


@SHARED
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("scale_dtype", ["float32", "float16", FLOAT8])
def test_one_copy_of_codes_and_scales_serves_both_operators(scale_dtype, exporter, tmp_path):
    fmt = make_format("int4", 32, scale_dtype=scale_dtype)
    skip_old("matmulnbits", fmt)
    proto = exported(exporter)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    (layer,) = quantize(source, target, fmt=fmt, form="matmulnbits", gather=Gather(1, fmt), exclude=("w",)).layers
    written = onnx.load(target)
    of_table = [t for t in written.graph.initializer if t.name.startswith(layer.name)]
    assert [t.name.removeprefix(f"{layer.name}_") for t in of_table if t.dims != [1]] == ["quantized", "scale"]
    width = {"float32": 4, "float16": 2, FLOAT8: 1}[scale_dtype]
    second_scale = 4 if scale_dtype == FLOAT8 else 0
    assert layer.nbytes == ROWS * HIDDEN // 2 + ROWS * HIDDEN // 32 * width + second_scale
    assert not [t for t in written.graph.initializer if ROWS in t.dims and t.data_type == onnx.TensorProto.FLOAT
                and scale_dtype != "float32"]  # fmt: skip
    inspection = inspect_model(target)
    assert inspection.quantized_bytes == layer.nbytes and not inspection.unread
    expected = run(with_weights(proto, with_table(proto, dequantized(written)[layer.name])), IDS)
    assert relative(run(target, IDS)[0], expected[0]) < 1e-6


@SHARED
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("scale_dtype", ["float32", FLOAT8])
def test_a_dry_run_knows_the_size(scale_dtype, exporter, tmp_path):
    fmt = make_format("int4", 32, scale_dtype=scale_dtype)
    skip_old("matmulnbits", fmt)
    source, target = save(exported(exporter), tmp_path), tmp_path / "out.onnx"
    form = find_form("matmulnbits")
    job = Job(source, target, MethodSpec("rtn_dq", fmt), form, gather=Gather(1, fmt), cache=tmp_path / "cache")
    before = estimate(job, [], [])
    outcome = quantize(source, target, fmt=fmt, form="matmulnbits", gather=Gather(1, fmt))
    assert [(x.name, x.nbytes) for x in before.layers] == [(x.name, x.nbytes) for x in outcome.layers]
    assert abs(before.target_bytes - outcome.target_bytes) <= 64


@pytest.mark.parametrize("exporter", [e for e in EXPORTERS if e not in COPIES])
@pytest.mark.parametrize(
    ("gather", "exclude", "reason"),
    [
        pytest.param(None, (), "gather.axis=1 quantizes it once for both", id="no axis"),
        pytest.param(Gather(0, INT4), (), "gather.axis=1 quantizes it once for both", id="other axis"),
        pytest.param(
            Gather(1, INT4), ("*head*", "node_linear_1", "*embed*", "e.weight"),
            "with the table of Gather that it is too: method.exclude=[] quantizes both", id="excluded",
        ),
    ],
)  # fmt: skip
def test_the_reason_says_what_quantizes_both(gather, exclude, reason, exporter, tmp_path):
    outcome = quantize(save(exported(exporter), tmp_path), tmp_path / "out.onnx", gather=gather, exclude=exclude)
    assert [x.name for x in outcome.layers] == ["w"]
    (kept,) = outcome.skipped
    assert kept.reason.endswith(reason)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_tie_that_stays_float_is_stored_once_in_its_old_nodes(exporter, tmp_path):
    proto = exported(exporter)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target)
    assert ("w" in [x.name for x in outcome.layers]) and not any(x.is_table for x in outcome.layers)
    written = onnx.load(target)
    if exporter in COPIES:  # the head is a weight of its own, and is quantized
        return
    before, after = (
        [(n.op_type, n.name, list(n.input)) for n in p.graph.node if _reads_tie(n)] for p in (proto, written)
    )
    assert sorted(before) == sorted(after)
    (tie,) = with_table(proto, np.zeros(0))
    (kept,) = [t for t in written.graph.initializer if t.name == tie]
    assert kept.raw_data == next(t for t in proto.graph.initializer if t.name == tie).raw_data
    assert not [t for t in written.graph.initializer if ROWS in t.dims and t.name != tie]


def _reads_tie(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Transpose", "Gather", "Gemm") or node.output[0] == "logits"


@pytest.mark.parametrize("exporter", COPIES)
def test_a_head_that_differs_by_one_number_is_no_copy(exporter, tmp_path):
    source = save(exported(exporter, tied=False), tmp_path)
    outcome = quantize(source, tmp_path / "out.onnx", gather=Gather(1, INT4))
    assert len(outcome.layers) == 3 and not outcome.notices


@pytest.mark.parametrize("exporter", COPIES)
def test_a_copy_with_a_rule_of_its_own_stays_a_weight_of_its_own(exporter, tmp_path):
    source, target = save(exported(exporter), tmp_path), tmp_path / "out.onnx"
    rule = Rule(("*head*", "node_linear_1"), make_format("int8", 32))
    outcome = quantize(source, target, gather=Gather(1, INT4), rules=(rule,))
    assert sorted((x.dtype, x.is_table) for x in outcome.layers) == [("int4", False), ("int4", True), ("int8", False)]
    excluded = quantize(
        source, tmp_path / "b.onnx", gather=Gather(1, INT4), exclude=("lm_head*", "onnx::MatMul_10", "node_linear_1")
    )
    assert [x.is_table for x in excluded.layers if x.c_out == ROWS] == [True]
    assert [d.shape for d in excluded.skipped] == [(HIDDEN, ROWS)]


@SHARED
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("method", ["best", "gptq"])
def test_the_moments_of_the_head_serve_the_tie(method, exporter, tmp_path):
    proto = exported(exporter)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    batches = [Batch({"ids": np.random.default_rng(0).integers(ROWS, size=300)})]
    outcome = quantize(source, target, method, batches, form="matmulnbits", gather=Gather(1, INT4))
    (tie,) = [x for x in outcome.layers if x.is_table]
    assert tie.loss is not None and tie.loss_rtn is not None and tie.loss < tie.loss_rtn and tie.alpha is None
    onnx.checker.check_model(str(target), full_check=True)
    assert 0 < relative(run(target, IDS)[0], run(source, IDS)[0]) < 0.5


@SHARED
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_float16(exporter, tmp_path):
    proto = exported(exporter, np.float16)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    (layer,) = quantize(source, target, form="matmulnbits", gather=Gather(1, INT4), exclude=("w",)).layers
    assert layer.nbytes == ROWS * HIDDEN // 2 + ROWS * HIDDEN // 32 * 2
    assert relative(run(target, IDS)[0], run(source, IDS)[0]) < 0.3
