"""Small ONNX models, one for each shape that exporters give a linear layer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.support.build import ACTIVATION, FFN, HIDDEN, Shape, build, node, value, vector, weight
from tests.support.moe_models import broadcast_moe, dense_moe, gathered_moe, masked_moe
from tests.support.subgraph_models import conditional, nested_conditional


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    """Activations with a few channels that are ten times larger: AWQ has something to scale."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x[..., :: max(1, shape[-1] // 4)] *= 10
    return x


def mlp(opset: int = 18, ir_version: int = 8) -> onnx.ModelProto:
    nodes = [node("MatMul", "x up", "h"), node("Relu", "h", "r"), node("MatMul", "r down", "y")]
    weights = {"up": weight(HIDDEN, FFN), "down": weight(FFN, HIDDEN)}
    return build(nodes, weights, {"y": ACTIVATION}, opset=opset, ir_version=ir_version)


def siblings() -> onnx.ModelProto:
    """RMSNorm, taken apart, and three weights that read it."""
    nodes = [
        node("Mul", "x x", "square"),
        node("ReduceMean", "square axes", "mean"),
        node("Add", "mean epsilon", "shifted"),
        node("Sqrt", "shifted", "root"),
        node("Div", "x root", "normed"),
        node("Mul", "norm normed", "scaled"),
        *(node("MatMul", f"scaled {name}", f"{name}_out") for name in "qkv"),
        node("Sum", "q_out k_out v_out", "y"),
    ]
    weights = {"axes": np.array([-1]), "epsilon": np.float32(1e-5), "norm": vector()}
    weights |= {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate("qkv")}
    return build(nodes, {k: np.asarray(v) for k, v in weights.items()}, {"y": ACTIVATION})


def layer_norm() -> onnx.ModelProto:
    nodes = [node("LayerNormalization", "x scale bias", "normed"), node("MatMul", "normed w", "y")]
    weights = {"scale": vector(), "bias": vector(seed=1), "w": weight(HIDDEN, HIDDEN)}
    return build(nodes, weights, {"y": ACTIVATION})


def biased(bias: np.ndarray | None = None) -> onnx.ModelProto:
    """Two linear layers with a bias between them and nothing else."""
    nodes = [node("MatMul", "x first", "h"), node("Add", "h bias", "b"), node("MatMul", "b second", "y")]
    weights = {"first": weight(HIDDEN, HIDDEN), "bias": vector() if bias is None else bias}
    return build(nodes, weights | {"second": weight(HIDDEN, HIDDEN, seed=1)}, {"y": ACTIVATION})


def linear_pair(extra: Sequence[NodeProto] = (), outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """Two linear layers, and what else reads the activation ``h`` between them."""
    nodes = [node("MatMul", "x first", "h"), node("MatMul", "h second", "y"), *extra]
    weights = {"first": weight(HIDDEN, HIDDEN), "second": weight(HIDDEN, HIDDEN, seed=1)}
    return build(nodes, weights, {name: [f"{name}{i}" for i in range(3)] for name in outputs})


def square() -> onnx.ModelProto:
    """A linear layer's output times itself: a division before it would count twice."""
    nodes = [node("MatMul", "x first", "h"), node("Mul", "h h", "sq"), node("MatMul", "sq second", "y")]
    weights = {"first": weight(HIDDEN, HIDDEN), "second": weight(HIDDEN, HIDDEN, seed=1)}
    return build(nodes, weights, {"y": ACTIVATION})


def swiglu() -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x gate", "g"),
        node("Sigmoid", "g", "s"),
        node("Mul", "g s", "silu"),
        node("MatMul", "x up", "u"),
        node("Mul", "silu u", "product"),
        node("MatMul", "product down", "y"),
    ]
    weights = {"gate": weight(HIDDEN, FFN), "up": weight(HIDDEN, FFN, seed=1), "down": weight(FFN, HIDDEN)}
    return build(nodes, weights, {"y": ACTIVATION})


def gemm(bias: bool = True, **attributes: float) -> onnx.ModelProto:
    w = weight(HIDDEN, FFN).T if attributes.get("transB") else weight(HIDDEN, FFN)
    weights = {"w": np.ascontiguousarray(w)} | ({"bias": vector(FFN)} if bias else {})
    x = value("x", (HIDDEN, "n") if attributes.get("transA") else ("n", HIDDEN))
    return build([node("Gemm", " ".join(["x", *weights]), "y", **attributes)], weights, {"y": ("n", FFN)}, [x])


def gemm_mixed() -> onnx.ModelProto:
    """One weight read as it is and transposed."""
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "x w", "b", transB=1), node("Add", "a b", "y")]
    return build(nodes, {"w": weight(HIDDEN, HIDDEN)}, {"y": ("n", HIDDEN)}, [value("x", ("n", HIDDEN))])


def shared(same: bool = False) -> onnx.ModelProto:
    """One weight read by two nodes, with one activation or with two."""
    nodes = [node("Relu", "x", "r"), node("MatMul", "x w", "a"), node("MatMul", "x w" if same else "r w", "b")]
    nodes.append(node("Concat", "a b", "y", axis=-1))
    return build(nodes, {"w": weight(HIDDEN, HIDDEN)}, {"y": (*ACTIVATION[:2], 2 * HIDDEN)})


def constants() -> onnx.ModelProto:
    """A weight and a norm's vector in Constant nodes."""
    tensors = {"norm": vector(), "w": weight(HIDDEN, HIDDEN)}
    held = [node("Constant", "", name, value=numpy_helper.from_array(array)) for name, array in tensors.items()]
    return build([*held, node("Mul", "x norm", "scaled"), node("MatMul", "scaled w", "y")], {}, {"y": ACTIVATION})


def unnamed() -> onnx.ModelProto:
    model = mlp()
    for each in model.graph.node:
        each.name = ""
    return model


def listed() -> onnx.ModelProto:
    """Initializers among the inputs, as files of ir_version 3 had to have them."""
    model = mlp()
    for tensor in model.graph.initializer:
        model.graph.input.append(value(tensor.name, list(tensor.dims)))
    return model


def stacked() -> onnx.ModelProto:
    """Experts: one matrix for each entry of the batch."""
    return build([node("MatMul", "x experts", "y")], {"experts": weight(2, HIDDEN, HIDDEN)}, {"y": ACTIVATION})


def embedding() -> onnx.ModelProto:
    """A table read by Gather and, transposed, as the last layer."""
    nodes = [
        node("Gather", "table ids", "e"),
        node("MatMul", "e w", "h"),
        node("Transpose", "table", "head", perm=[1, 0]),
        node("MatMul", "h head", "y"),
    ]
    ids = value("ids", ("batch", "sequence"), TensorProto.INT64)
    weights = {"table": weight(32, HIDDEN), "w": weight(HIDDEN, HIDDEN)}
    return build(nodes, weights, {"y": ("batch", "sequence", 32)}, [ids])


def constant_activation() -> onnx.ModelProto:
    """A table of positions times a weight: the product depends on no input."""
    nodes = [node("MatMul", "table w", "p"), node("Add", "x p", "s"), node("MatMul", "s v", "y")]
    weights = {"table": weight(1, HIDDEN), "w": weight(HIDDEN, HIDDEN), "v": weight(HIDDEN, HIDDEN, seed=1)}
    return build(nodes, weights, {"y": ACTIVATION})


def weight_as_output() -> onnx.ModelProto:
    return build([node("MatMul", "x w", "y")], {"w": weight(HIDDEN, HIDDEN)}, {"y": ACTIVATION, "w": (HIDDEN, HIDDEN)})


def typed(dtype: type, kind: int) -> onnx.ModelProto:
    """The mlp's first layer in another float type."""
    return build(
        [node("MatMul", "x w", "y")], {"w": weight(HIDDEN, FFN, dtype=dtype)}, {"y": (*ACTIVATION[:2], FFN)}, dtype=kind
    )


def attention() -> onnx.ModelProto:
    """Heads are split with shapes that are computed, one dimension (a scalar) at a time, from the activation."""
    nodes = [
        node("LayerNormalization", "x scale", "normed"),
        node("Shape", "normed", "dims"),
        node("Gather", "dims one", "length"),
        node("Range", "zero length step", "positions"),
        node("Cast", "positions", "places", to=TensorProto.FLOAT),
        node("Unsqueeze", "places axes", "column"),
        node("Slice", "dims start stop", "leading"),
        node("Concat", "leading split", "shape", axis=0),
        *(node("MatMul", f"normed {name}", f"{name}_out") for name in "qkv"),
        *(node("Reshape", f"{name}_out shape", f"{name}_heads") for name in "qkv"),
        node("Transpose", "q_heads", "q_t", perm=[0, 2, 1, 3]),
        node("Transpose", "k_heads", "k_t", perm=[0, 2, 3, 1]),
        node("Transpose", "v_heads", "v_t", perm=[0, 2, 1, 3]),
        node("MatMul", "q_t k_t", "scores"),
        node("Softmax", "scores", "shares", axis=-1),
        node("MatMul", "shares v_t", "mixed"),
        node("Transpose", "mixed", "mixed_t", perm=[0, 2, 1, 3]),
        node("Reshape", "mixed_t merged", "joined"),
        node("MatMul", "joined o", "o_out"),
        node("Add", "o_out column", "placed"),
        node("MatMul", "placed lm_head", "y"),
    ]
    numbers = {"one": 1, "zero": 0, "step": 1, "axes": [1], "start": [0], "stop": [2], "split": [4, HIDDEN // 4]}
    weights = {name: np.array(number, np.int64) for name, number in numbers.items()}
    weights |= {"merged": np.array([0, 0, HIDDEN]), "scale": vector()}
    weights |= {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate([*"qkvo", "lm_head"])}
    return build(nodes, weights, {"y": ACTIVATION})


IMAGE = ("batch", 8, "height", "width")


def convolution(bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    """A convolution of images of eight channels."""
    groups = attributes.get("group", 1)
    weights = {"kernel": weight(12, 8 // groups, 3, 3)} | ({"bias": vector(12)} if bias else {})
    nodes = [node("Conv", " ".join(["x", *weights]), "h", **attributes), node("Relu", "h", "y")]
    return build(nodes, weights, {"y": ("n", 12, "h", "w")}, [value("x", IMAGE)])


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        mlp, siblings, layer_norm, biased, linear_pair, square, swiglu, gemm, gemm_mixed, shared, constants, unnamed,
        listed, stacked, embedding, constant_activation, conditional, nested_conditional, weight_as_output, attention,
    )
}  # fmt: skip
MODELS |= {
    "gemm_transposed": lambda: gemm(transB=1),
    "half": lambda: typed(np.float16, TensorProto.FLOAT16),
    "double": lambda: typed(np.float64, TensorProto.DOUBLE),
    "convolution": convolution,
}
MODELS |= {f.__name__: f for f in (dense_moe, masked_moe, broadcast_moe, gathered_moe)}


def tied(kind: type = np.float32, head: str = "Transpose", rows: int = 40, columns: int = HIDDEN) -> onnx.ModelProto:
    """An embedding that the last layer reads too: through nodes named by ``head``, or by a Gemm with ``transB``.

    A Cast in ``head`` goes to float32, in which the model then computes.
    """
    wide = "Cast" in head
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [node("Gather", "table ids", "e")] + ([node("Cast", "e", "x", to=TensorProto.FLOAT)] if wide else [])
    nodes.append(node("Relu", "x" if wide else "e", "h"))
    last = "table"
    for i, op in enumerate(head.split(",") if head != "Gemm" else []):
        how: dict[str, Any] = {"perm": [1, 0]} if op == "Transpose" else {"to": TensorProto.FLOAT}
        nodes.append(node(op, last, f"view{i}", **how))
        last = f"view{i}"
    nodes.append(node("Gemm", "h table bias", "y", transB=1) if head == "Gemm" else node("MatMul", f"h {last}", "y"))
    nodes.append(node("MatMul", "h w", "z"))
    own = np.float32 if wide else kind
    weights = {"table": weight(rows, columns, dtype=kind), "w": weight(columns, 32, dtype=own)}
    weights |= {"bias": vector(rows).astype(own)} if head == "Gemm" else {}
    outputs: dict[str, Shape] = {"h": ("n", columns), "y": ("n", rows), "z": ("n", 32)}
    ids = value("ids", ("n",), TensorProto.INT64)
    return build(nodes, weights, outputs, [ids], dtype=TensorProto.FLOAT if wide else dtype)
