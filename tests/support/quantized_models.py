"""Models that hold quantized weights already, beside a float one."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from tests.support.models import FFN, HIDDEN, node, tokens, weight
from tests.support.normalize_models import linear

BLOCK = 16


def codes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes [HIDDEN, HIDDEN] and a scale for each block of rows."""
    w = weight(HIDDEN, HIDDEN, seed=seed).reshape(-1, BLOCK, HIDDEN)
    s = np.abs(w).max(1, keepdims=True) / 127
    return np.rint(w / s).astype(np.int8).reshape(HIDDEN, HIDDEN), s[:, 0]


def beside(nodes: Sequence[NodeProto], weights: dict[str, np.ndarray], opset: int) -> onnx.ModelProto:
    """What is quantized makes ``h`` of ``x``; a float weight follows."""
    return linear([*nodes, node("MatMul", "h w", "y")], weights | {"w": weight(HIDDEN, FFN)}, opset)


def dequantized_columns(opset: int) -> onnx.ModelProto:
    q, _ = codes()
    nodes = [node("DequantizeLinear", "q s zp", "d", axis=1), node("MatMul", "x d", "h")]
    return beside(nodes, {"q": q, "s": np.full(HIDDEN, 0.004, np.float32), "zp": np.zeros(HIDDEN, np.int8)}, opset)


def dequantized_transposed(opset: int) -> onnx.ModelProto:
    q, _ = codes()
    nodes = [
        node("DequantizeLinear", "q s", "d", axis=0),
        node("Transpose", "d", "dt", perm=[1, 0]),
        node("MatMul", "x dt", "h"),
    ]
    return beside(nodes, {"q": q, "s": np.full(HIDDEN, 0.004, np.float32)}, opset)


def dequantized_blocks(opset: int) -> onnx.ModelProto:
    """Scales [n_blocks, HIDDEN], of rank 2."""
    q, s = codes()
    nodes = [node("DequantizeLinear", "q s", "d", axis=0, block_size=BLOCK), node("MatMul", "x d", "h")]
    return beside(nodes, {"q": q, "s": s}, opset)


def scaled_by_mul(opset: int) -> onnx.ModelProto:
    """Cast and Mul in place of DequantizeLinear, as older files have it, with scales [1, HIDDEN]."""
    q, _ = codes()
    nodes = [node("Cast", "q", "f", to=TensorProto.FLOAT), node("Mul", "f s", "d"), node("MatMul", "x d", "h")]
    return beside(nodes, {"q": q, "s": np.full((1, HIDDEN), 0.004, np.float32)}, opset)


def mat_mul_n_bits(opset: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    sizes = {"K": HIDDEN, "N": HIDDEN, "bits": 4, "block_size": BLOCK, "accuracy_level": 1}
    made = helper.make_node("MatMulNBits", ["x", "q", "s"], ["h"], "/h/MatMulNBits", domain="com.microsoft")
    made.attribute.extend(helper.make_attribute(name, size) for name, size in sizes.items())
    weights = {
        "q": rng.integers(256, size=(HIDDEN, HIDDEN // BLOCK, BLOCK // 2)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.02, (HIDDEN, HIDDEN // BLOCK)).astype(np.float32),
    }
    return _with_domain([made], weights, opset)


def _with_domain(nodes: Sequence[NodeProto], weights: dict[str, np.ndarray], opset: int) -> onnx.ModelProto:
    """`beside`, where onnx knows no shapes of operators that are onnxruntime's own."""
    model = beside([node("Identity", "x", "h")], weights, opset)
    del model.graph.node[0]
    for each in reversed(nodes):
        model.graph.node.insert(0, each)
    model.opset_import.add(domain="com.microsoft", version=1)
    onnx.checker.check_model(model)
    return model


def qlinear(opset: int) -> onnx.ModelProto:
    q, _ = codes()
    weights = {"xs": np.float32(0.2), "xz": np.uint8(128), "q": q, "s": np.float32(0.004), "zp": np.int8(0)}
    weights |= {"hs": np.float32(0.4), "hz": np.uint8(128)}
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("QLinearMatMul", "xq xs xz q s zp hs hz", "hq"),
        node("DequantizeLinear", "hq hs hz", "h"),
    ]
    return beside(nodes, {name: np.asarray(array) for name, array in weights.items()}, opset)


def dynamic(opset: int) -> onnx.ModelProto:
    """Activations quantized as they come; the factor of the result is a constant [1, HIDDEN]."""
    q, _ = codes()
    nodes = [
        node("DynamicQuantizeLinear", "x", "xq xs xz"),
        node("MatMulInteger", "xq q xz", "hi"),
        node("Cast", "hi", "hf", to=TensorProto.FLOAT),
        node("Mul", "xs s", "factor"),
        node("Mul", "hf factor", "h"),
    ]
    return beside(nodes, {"q": q, "s": np.full((1, HIDDEN), 0.004, np.float32)}, opset)


QUANTIZED = {
    f.__name__: f
    for f in (
        dequantized_columns,
        dequantized_transposed,
        dequantized_blocks,
        scaled_by_mul,
        mat_mul_n_bits,
        qlinear,
        dynamic,
    )
}
X = {"x": tokens(2, 6, HIDDEN)}
