"""Ties of embedding and head as exporters write them: the nodes and names of real exports, on a small model."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from tests.support.build import HIDDEN, build, value, weight

ROWS = 40
EXPORTERS = (
    "builder",
    "builder, embeddings not shared",
    "torch legacy",
    "torch legacy, constants not folded",
    "torch dynamo",
    "torch dynamo, constants folded",
    "torch dynamo, Gemm",
    "optimum",
)
"""onnxruntime-genai 0.18, torch 2.13, optimum-onnx 0.1: it exports with torch, and with accelerate a Transpose takes
the place of the copy."""

Tie = tuple[dict[str, np.ndarray], list[NodeProto]]


def exported(exporter: str, kind: type = np.float32, tied: bool = True) -> onnx.ModelProto:
    """``logits = relu(relu(table[ids]) W) table^T``, written as an exporter does.

    Args:
        exporter: One of `EXPORTERS`.
        kind: float32 or float16.
        tied: False changes one number of a head that is an initializer of its own.
    """
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    weights, nodes = _ties(weight(ROWS, HIDDEN, dtype=kind))[exporter]
    weights["w"] = weight(HIDDEN, HIDDEN, seed=1, dtype=kind)
    if not tied:
        (head,) = [name for name in weights if weights[name].shape == (HIDDEN, ROWS)]
        weights[head] = weights[head].copy()
        weights[head][-1, -1] += 1
    gather = next(i for i, each in enumerate(nodes) if each.op_type == "Gather")
    between = [
        helper.make_node("Relu", ["embedded"], ["h"], "/act/Relu"),
        helper.make_node("MatMul", ["h", "w"], ["wh"], "/l/MatMul"),
        helper.make_node("Relu", ["wh"], ["x"], "/act_1/Relu"),
    ]
    nodes[gather + 1 : gather + 1] = between
    ids = value("ids", ("n",), TensorProto.INT64)
    return build(nodes, weights, {"logits": ("n", ROWS)}, [ids], dtype=dtype)


def with_table(model: onnx.ModelProto, table: np.ndarray) -> dict[str, np.ndarray]:
    """The values of all initializers that hold the table or the head, for another ``table`` [rows, columns]."""
    names = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if ROWS in tensor.dims}
    return {name: table if shape == (ROWS, HIDDEN) else table.T for name, shape in names.items() if len(shape) == 2}


def _ties(table: np.ndarray) -> dict[str, Tie]:
    """Initializers and nodes by exporter: ``ids`` to ``embedded``, and ``x`` to ``logits``."""
    make, copy = helper.make_node, np.ascontiguousarray(table.T)
    swap = "/model/embed_tokens/Transpose"
    builder = [
        make("Transpose", ["lm_head.MatMul.weight"], [f"{swap}/output_0"], swap, perm=[1, 0]),
        make("Gather", [f"{swap}/output_0", "ids"], ["embedded"], "/model/embed_tokens/Gather"),
        make("MatMul", ["x", "lm_head.MatMul.weight"], ["logits"], "/lm_head/MatMul"),
    ]
    separate = [
        make("Gather", ["model.embed_tokens.weight", "ids"], ["embedded"], "/model/embed_tokens/Gather"),
        make("MatMul", ["x", "lm_head.MatMul.weight"], ["logits"], "/lm_head/MatMul"),
    ]
    folded = [
        make("Gather", ["e.weight", "ids"], ["embedded"], "/e/Gather"),
        make("MatMul", ["x", "onnx::MatMul_10"], ["logits"], "/head/MatMul"),
    ]
    unfolded = [
        make("Gather", ["e.weight", "ids"], ["embedded"], "/e/Gather"),
        make("Transpose", ["e.weight"], ["/head/Transpose_output_0"], "/head/Transpose", perm=[1, 0]),
        make("MatMul", ["x", "/head/Transpose_output_0"], ["logits"], "/head/MatMul"),
    ]
    gather = make("Gather", ["head.weight", "ids"], ["embedded"], "node_embedding", axis=0)
    dynamo = [
        gather,
        make("Transpose", ["head.weight"], ["val_381"], "node_Transpose_381", perm=[1, 0]),
        make("MatMul", ["x", "val_381"], ["logits"], "node_linear_1"),
    ]
    gemm = make("Gemm", ["x", "head.weight"], ["logits"], "node_linear_1", alpha=1.0, beta=1.0, transA=0, transB=1)
    return {
        "builder": ({"lm_head.MatMul.weight": copy}, builder),
        "builder, embeddings not shared": (
            {"model.embed_tokens.weight": table, "lm_head.MatMul.weight": copy}, separate
        ),
        "torch legacy": ({"e.weight": table, "onnx::MatMul_10": copy}, folded),
        "torch legacy, constants not folded": ({"e.weight": table}, unfolded),
        "torch dynamo": ({"head.weight": table}, dynamo),
        "torch dynamo, constants folded": (
            {"head.weight": table, "val_1": copy},
            [gather, make("MatMul", ["x", "val_1"], ["logits"], "node_linear_1")],
        ),
        "torch dynamo, Gemm": ({"head.weight": table}, [gather, gemm]),
        "optimum": ({"e.weight": table}, unfolded),
    }  # fmt: skip
