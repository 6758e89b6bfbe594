"""The form of onnxruntime's own operators."""

import onnx
import pytest

from jaxq.formats.integers import IntegerFormat
from tests.support import models
from tests.support.forms import every_reader, fused, in_place, skip_old
from tests.support.models import FFN, HIDDEN, tokens
from tests.support.running import OPSET_23, initializers, quantize, relative, run, save
from tests.support.unpacked import attributes_of, dequantized


@pytest.mark.parametrize("level", range(5))
def test_the_accuracy_level_is_in_the_file(level, tmp_path):
    source, target = save(models.mlp(), tmp_path), tmp_path / "out.onnx"
    quantize(source, target, form="matmulnbits", accuracy_level=level)
    written = onnx.load(target)
    assert [attributes_of(n)["accuracy_level"] for n in written.graph.node if n.op_type == "MatMulNBits"] == [level] * 2
    x = {"x": tokens(2, 4, HIDDEN)}
    expected = run(in_place(models.mlp(), dequantized(written)), x)[0]
    assert relative(run(target, x)[0], expected) < (0.02 if level == 4 else 1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_negative_scales_are_right_at_the_default_level(bits, tmp_path):
    proto, fmt = every_reader(), IntegerFormat(32, bits, full_range=True)
    skip_old("matmulnbits", fmt)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target, fmt=fmt, form="matmulnbits", accuracy_level=4)
    written, x = onnx.load(target), {"x": tokens(5, FFN)}
    assert (initializers(written)["plain_scale"] < 0).any()
    for got, expected in zip(run(target, x), run(in_place(proto, dequantized(written)), x), strict=True):
        assert relative(got, expected) < 0.02


@pytest.mark.parametrize("zero_point", [False, True], ids=["signed", "zero points"])
def test_the_bias_of_a_gemm_is_input_5(zero_point, tmp_path):
    source, target = save(every_reader(), tmp_path), tmp_path / "out.onnx"
    quantize(source, target, fmt=IntegerFormat(32, use_zero_point=zero_point), form="matmulnbits")
    nodes = [n for n in onnx.load(target).graph.node if n.op_type == "MatMulNBits"]
    biased = {n.output[0]: list(n.input[3:]) for n in nodes}
    zp = {name: f"{w}_zero_point" for name, w in {"b": "straight", "c": "crosswise", "h": "table"}.items()}
    for output, points in zp.items():
        first, *rest = biased.pop(output)
        assert first.startswith(points) if zero_point else first == ""
        assert rest == ["", "bias"]
    assert all(len(inputs) == zero_point for inputs in biased.values())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_node_is_still_there_when_onnxruntime_has_optimized_the_model(bits, tmp_path):
    skip_old("matmulnbits", IntegerFormat(32, bits))
    source, target = save(every_reader(), tmp_path), tmp_path / "out.onnx"
    quantize(source, target, fmt=IntegerFormat(32, bits), form="matmulnbits")
    operators = fused(target)
    assert operators["com.microsoft:MatMulNBits"] == 8
    assert {":MatMul", ":Gemm", ":DequantizeLinear"}.isdisjoint(operators)


@pytest.mark.parametrize(
    ("opset", "ir_version", "expected"),
    [
        pytest.param(11, 6, (13, 10), id="11"),
        pytest.param(13, 7, (13, 10), id="13"),
        pytest.param(18, 8, (18, 10), id="18"),
        pytest.param(21, 10, (21, 10), id="21"),
        pytest.param(23, 11, (23, 11), id="23", marks=OPSET_23),
    ],
)
def test_opsets_from_13_stay(opset, ir_version, expected, tmp_path):
    proto = models.mlp(opset, ir_version)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    quantize(source, target, form="matmulnbits")
    onnx.checker.check_model(str(target), full_check=True)
    written = onnx.load(target)
    assert ({o.domain: o.version for o in written.opset_import}, written.ir_version) == (
        {"": expected[0], "com.microsoft": 1},
        expected[1],
    )
    x = {"x": tokens(2, 4, HIDDEN)}
    assert relative(run(target, x)[0], run(in_place(proto, dequantized(written)), x)[0]) < 1e-6


@pytest.mark.parametrize(
    ("fmt", "each"),
    [
        *[pytest.param(IntegerFormat(16, b), c + 2, id=f"int{b}") for b, c in ((2, 2), (3, 4), (4, 4), (6, 8), (8, 8))],
        *[pytest.param(IntegerFormat(16, b, True), b + 2 + b / 16, id=f"uint{b}") for b in (4, 8)],
        pytest.param(IntegerFormat(16, 2, True), 2 + 2 + 2 / 16, id="uint2"),
        pytest.param(IntegerFormat(128, 4), 2 * 4 + 32 / 64, id="int4 padded"),
    ],
)
def test_bytes_are_those_reported(fmt, each, tmp_path):
    """Codes in 2, 4 or 8 bits, a float a block and a zero point a block."""
    source, target = save(models.linear_pair(), tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, fmt=fmt, form="matmulnbits")
    assert sum(t.nbytes for t in initializers(onnx.load(target)).values()) == 2 * HIDDEN * HIDDEN * each / 8
    assert [layer.nbytes for layer in outcome.layers] == [HIDDEN * HIDDEN * each / 8] * 2
