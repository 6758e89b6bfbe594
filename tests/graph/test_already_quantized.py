"""What is quantized already stays, and works; the float weights beside it are quantized."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from jaxq.graph.already_quantized import ALREADY
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites
from tests.support.quantized_models import QUANTIZED, X
from tests.support.running import quantize, relative, run, save, with_weights
from tests.support.unpacked import dequantized

CASES = [
    (name, opset) for name in QUANTIZED for opset in (13, 17, 19, 21) if name != "dequantized_blocks" or opset == 21
]


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
@pytest.mark.parametrize(("name", "opset"), CASES)
def test_float_weights_are_quantized_and_the_others_stay(name, opset, form, tmp_path):
    source = QUANTIZED[name](opset)
    outcome = quantize(save(source, tmp_path), tmp_path / "out.onnx", form=form)
    assert [layer.name for layer in outcome.layers] == ["w"]
    written = onnx.load(tmp_path / "out.onnx")
    kept = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    for tensor in source.graph.initializer:
        if tensor.name != "w":
            np.testing.assert_array_equal(kept[tensor.name], numpy_helper.to_array(tensor))
    own = {n.name: n.op_type for n in source.graph.node[:-1]}
    assert own.items() <= {n.name: n.op_type for n in written.graph.node}.items()
    alone = onnx.ModelProto()  # what the float weight makes of it, without the nodes and codes that were there
    alone.CopyFrom(written)
    present = {*own, *(n.name for n in written.graph.node if n.op_type == "QuantizeLinear")}
    del alone.graph.node[:]
    alone.graph.node.extend(n for n in written.graph.node if n.name not in present)
    w = dequantized(alone)["w"]
    expected = run(with_weights(source, {"w": w}), X)[0]
    assert relative(run(tmp_path / "out.onnx", X)[0], expected) < 5e-6


@pytest.mark.parametrize("name", QUANTIZED)
def test_scales_are_no_weights(name):
    model = ir.from_proto(QUANTIZED[name](21))
    prepare(model)
    sites, skipped = find_sites(model.graph)
    assert [site.name for site in sites] == ["w"]
    names = [name for name in model.graph.initializers if name in ("s", "xs", "hs")]
    tensors = {name: model.graph.initializers[name].const_value for name in names}
    found = [d.name for d in skipped if d.reason != ALREADY and d.name != "zp"]
    assert found == [name for name, tensor in tensors.items() if tensor and tensor.size > 1]
