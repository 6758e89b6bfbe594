"""Models brought to a newer opset: results stay, and what the converter cannot do is an error."""

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxscript.version_converter import _version_converter as converter

from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.graph.opset import raise_opset
from tests.support.models import HIDDEN, mlp, node, value, vector, weight
from tests.support.normalize_models import call, function, ir_version, linear, with_functions
from tests.support.running import OPSET_23, quantize, relative, run, save
from tests.support.unpacked import dequantized

CHANNELS = 6
IMAGE = np.random.default_rng(0).standard_normal((2, CHANNELS, 4, 5)).astype(np.float32)
SHAPES = {"known": IMAGE.shape, "channels unknown": ("n", "c", "h", "w"), "no shape": None}


def group_norm(
    groups: int = 3, opset: int = 18, shape=IMAGE.shape, dtype: type = np.float32, computed: bool = False
) -> onnx.ModelProto:
    """GroupNormalization of opset 18 with a scale and a bias for each group, and a product behind."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [node("Mul", "s one", "scale")] if computed else []
    nodes += [
        node("GroupNormalization", f"x {'scale' if computed else 's'} b", "normed", num_groups=groups, epsilon=1e-3),
        node("MatMul", "normed w", "y"),
    ]
    weights = {"s": vector(groups), "b": vector(groups, seed=1), "w": weight(5, 8)} | ({"one": 1.0} if computed else {})
    tensors = [numpy_helper.from_array(np.asarray(a, dtype), name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, "norm", [value("x", shape, kind)], [value("y", list("nchv"), kind)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version(opset))


def expected(groups: int, w: np.ndarray) -> np.ndarray:
    """The model by its definition in numpy."""
    x = IMAGE.astype(np.float64).reshape(2, groups, -1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return (x * vector(groups)[:, None] + vector(groups, seed=1)[:, None]).reshape(IMAGE.shape) @ w


@pytest.mark.parametrize("computed", [False, True], ids=["constant", "computed"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("groups", [1, 3, CHANNELS])
@pytest.mark.parametrize("opset", [18, 20])
def test_group_normalization_has_a_scale_for_each_channel(opset, groups, shape, computed, tmp_path):
    source, target = save(group_norm(groups, opset, shape, computed=computed), tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target)
    assert [layer.name for layer in outcome.layers] == ["w"]
    w = dequantized(onnx.load(target))["w"]
    assert relative(run(target, {"x": IMAGE})[0], expected(groups, w)) < 1e-5
    assert relative(run(source, {"x": IMAGE})[0], expected(groups, weight(5, 8))) < 1e-5


@pytest.mark.parametrize("form", ["dq", pytest.param("nvfp4_standard", marks=OPSET_23)])
def test_group_normalization_in_each_opset(form, tmp_path):
    fmt = Nvfp4Format() if form == "nvfp4_standard" else None
    target = tmp_path / "out.onnx"
    quantize(save(group_norm(), tmp_path), target, form=form, fmt=fmt)
    onnx.checker.check_model(str(target))


def test_group_normalization_in_float16(tmp_path):
    source, target = save(group_norm(dtype=np.float16), tmp_path), tmp_path / "out.onnx"
    quantize(source, target, fmt=IntegerFormat(num_bits=8, block_size=32))
    x = {"x": IMAGE.astype(np.float16)}
    assert relative(run(target, x)[0], run(source, x)[0]) < 2e-2


def test_group_normalization_in_a_branch_and_in_a_function(tmp_path):
    """Two of one name, and both are told apart."""
    norm = helper.make_node("GroupNormalization", ["x", "s", "b"], ["t"], num_groups=2)
    then = helper.make_graph([norm], "then", [], [value("t", None)])
    other = helper.make_graph([call("Norm", "x s b", "e")], "other", [], [value("e", None)])
    body = function("Norm", "v s b", "u", [helper.make_node("GroupNormalization", list("vsb"), ["u"], num_groups=2)])
    nodes = [
        node("Greater", "most zero", "c"),
        node("If", "c", "z", then_branch=then, else_branch=other),
        node("MatMul", "z w", "y"),
    ]
    nodes.insert(0, node("ReduceMax", "x", "most", keepdims=0))
    weights = {"s": vector(2), "b": vector(2, seed=1), "w": weight(HIDDEN, 8), "zero": np.float32(0)}
    source = save(with_functions(nodes, weights, [body], size=8, check=False), tmp_path)
    target = tmp_path / "out.onnx"
    quantize(source, target, fmt=IntegerFormat(num_bits=8, block_size=32))
    for sign in (1, -1):
        x = {"x": sign * np.abs(np.random.default_rng(1).standard_normal((2, 6, HIDDEN))).astype(np.float32)}
        assert relative(run(target, x)[0], run(source, x)[0]) < 2e-2


def test_conversion_gives_the_same_bytes_each_time():
    models = [ir.from_proto(group_norm()) for _ in range(2)]
    for model in models:
        raise_opset(model, 21, 10)
    assert ir.to_proto(models[0]).SerializeToString() == ir.to_proto(models[1]).SerializeToString()


def test_a_group_normalization_that_lacks_its_number_is_refused(tmp_path):
    source = group_norm()
    source.graph.node[0].ClearField("attribute")
    with pytest.raises(JaxqError, match=r"from opset 18 to 21: GroupNormalization '/normed/GroupNorm.*' lacks"):
        quantize(save(source, tmp_path), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def failing(*_):
    raise converter.VersionConverterError("no way for Relu")


def test_a_conversion_that_is_skipped_is_an_error(monkeypatch, caplog, capfd):
    """The converter logs such a failure and goes on."""
    monkeypatch.setitem(converter.registry.op_adapters, ("", "Relu", 19, True), failing)
    logging.getLogger("onnxscript.version_converter").setLevel(logging.CRITICAL)
    with pytest.raises(JaxqError) as error:
        raise_opset(ir.from_proto(mlp()), 21, 10)
    assert str(error.value) == (
        "the model cannot be converted from opset 18 to 21: Skipping version conversion for node Relu due to "
        "exception: no way for Relu; export it with opset 21, or take form=matmulnbits, which leaves the opset as it is"
    )
    assert not caplog.records and capfd.readouterr().err == ""
    logger = logging.getLogger("onnxscript.version_converter")
    assert (logger.level, logger.handlers, logger.propagate) == (logging.CRITICAL, [], True)
    logger.setLevel(logging.NOTSET)


def test_a_conversion_that_onnx_gives_up_is_an_error(monkeypatch, capfd):
    """Opsets before 18 go through onnx's own converter."""

    def fail(*_, **__):
        raise RuntimeError("No Adapter For Relu.\n")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    with pytest.raises(JaxqError, match=r"from opset 17 to 21: No Adapter For Relu; export it with opset 21, or"):
        raise_opset(ir.from_proto(mlp(17)), 21, 10)
    assert capfd.readouterr().err == ""


def test_what_the_converter_says_when_all_goes_well_is_not_shown(caplog, capfd):
    model = ir.from_proto(mlp(13, 7))
    raise_opset(model, 21, 10)
    assert model.opset_imports[""] == 21
    assert not caplog.records and capfd.readouterr().err == ""


@pytest.mark.parametrize("opset", [13, 17])
def test_operators_that_changed_give_the_same(opset, tmp_path):
    """Axes that became an input, in the graph and in a branch."""
    then = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]), helper.make_node("Sub", ["x", "m"], ["t"])],
        "then", [], [value("t", None)],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["e"])], "other", [], [value("e", None)])
    nodes = [
        node("ReduceMax", "x", "most", keepdims=0, axes=[0, 1, 2]),
        node("Greater", "most zero", "c"),
        node("If", "c", "z", then_branch=then, else_branch=other),
        node("MatMul", "z w", "y"),
    ]
    source = save(linear(nodes, {"zero": np.zeros((), np.float32), "w": weight(HIDDEN, 96)}, opset), tmp_path)
    target = tmp_path / "out.onnx"
    quantize(source, target, fmt=IntegerFormat(num_bits=8, block_size=32))
    for sign in (1, -1):
        x = {"x": sign * np.abs(np.random.default_rng(1).standard_normal((2, 6, HIDDEN))).astype(np.float32)}
        assert relative(run(target, x)[0], run(source, x)[0]) < 2e-2


def test_a_foreign_operator_in_onnx_own_domain_stays(tmp_path):
    nodes = [node("SimplifiedLayerNormalization", "x scale", "n", axis=-1), node("MatMul", "n w", "y")]
    tensors = [numpy_helper.from_array(vector(), "scale"), numpy_helper.from_array(weight(HIDDEN, 8), "w")]
    graph = helper.make_graph(nodes, "foreign", [value("x", ("n", HIDDEN))], [value("y", ("n", 8))], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    source, target = save(model, tmp_path), tmp_path / "out.onnx"
    quantize(source, target, fmt=IntegerFormat(num_bits=8, block_size=32))
    x = {"x": np.random.default_rng(2).standard_normal((4, HIDDEN)).astype(np.float32)}
    assert relative(run(target, x)[0], run(source, x)[0]) < 2e-2
