"""What the bytes of a quantized file stand for, worked out without jaxq."""

import re

import numpy as np
import onnx

from tests.graph.running import initializers

_RANGES: dict[int, tuple[int, int]] = {
    onnx.TensorProto.INT4: (-8, 7),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT8: (0, 255),
}


def dequantized(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights [c_in, c_out] by the names they had, in float64; codes are those stored, or a QuantizeLinear's.

    The copies of a shared weight, one for each node that reads it, have to be the same.
    """
    tensors = initializers(model)
    found: dict[str, np.ndarray] = {}
    for dq in model.graph.node:
        if dq.op_type != "DequantizeLinear":
            continue
        if dq.input[0] in tensors:
            codes = tensors[dq.input[0]].astype(np.float64)
        else:
            (quantizer,) = [n for n in model.graph.node if dq.input[0] in n.output]
            codes = _codes(quantizer, model)
        s, zp = _per_row(dq, tensors, codes.shape[0])
        name = re.sub(r"_scale(_\d+)?$", "", dq.input[1])
        w = (codes - zp) * s
        np.testing.assert_array_equal(w, found.setdefault(name, w))
    return found


def _codes(quantizer: onnx.NodeProto, model: onnx.ModelProto) -> np.ndarray:
    assert quantizer.op_type == "QuantizeLinear"
    tensors = initializers(model)
    w = tensors[quantizer.input[0]].astype(np.float32)
    s, zp = _per_row(quantizer, tensors, w.shape[0])
    kinds = [t.data_type for t in model.graph.initializer if t.name in quantizer.input[2:]]
    kinds += [a.i for a in quantizer.attribute if a.name == "output_dtype"]
    return np.clip(np.rint(w / s.astype(np.float32)) + zp, *_RANGES[kinds[0]])


def _per_row(
    node: onnx.NodeProto, tensors: dict[str, np.ndarray], rows: int
) -> tuple[np.ndarray, np.ndarray | np.float64]:
    """Scale and zero point for each row and column of the weight that the node reads."""
    attributes = {a.name: a.i for a in node.attribute}
    s, *zp = (tensors[name].astype(np.float64) for name in node.input[1:])
    if "block_size" in attributes:
        assert attributes["axis"] == 0
        assert s.shape[0] == -(-rows // attributes["block_size"])
        block = np.arange(rows) // attributes["block_size"]
        return s[block], zp[0][block] if zp else np.float64(0)
    assert attributes["axis"] == 1
    assert s.ndim == 1
    return s, zp[0] if zp else np.float64(0)
