"""Small mixtures of experts: stacks of matrices, or a matrix for each expert, with routing in four ways."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto

from tests.support.build import ACTIVATION, HIDDEN, build, node, weight

EXPERTS, EXPERT_FFN = 4, 48
UNREACHED = 2
"""The expert that no token reaches."""


def router() -> dict[str, np.ndarray]:
    """A router's weight and bias; no token ever reaches one of the experts."""
    bias = np.zeros(EXPERTS, np.float32)
    bias[UNREACHED] = -1e4
    return {"router": weight(HIDDEN, EXPERTS), "router_bias": bias}


def experts() -> dict[str, np.ndarray]:
    """Stacks of a gated feed-forward layer, each expert's weights of its own size."""
    size = np.arange(1, 1 + EXPERTS, dtype=np.float32)[:, None, None]
    shapes = {"gate": (HIDDEN, EXPERT_FFN), "up": (HIDDEN, EXPERT_FFN), "down": (EXPERT_FFN, HIDDEN)}
    return {
        name: size * np.stack([weight(*shape, seed=10 * i + e) for e in range(EXPERTS)])
        for i, (name, shape) in enumerate(shapes.items())
    }


def routed(before: Sequence[NodeProto], ready: str) -> onnx.ModelProto:
    """A mixture of experts without branches: ``before`` makes ``ready`` [experts, tokens, hidden] of the tokens."""
    nodes = [
        node("Reshape", "x flat", "tokens"),
        node("MatMul", "tokens router", "logits"),
        node("Add", "logits router_bias", "biased"),
        node("Softmax", "biased", "shares", axis=-1),
        node("ArgMax", "shares", "best", axis=-1, keepdims=0),
        node("OneHot", "best experts off_on", "picked", axis=0),
        node("Transpose", "shares", "shares_t", perm=[1, 0]),
        node("Mul", "shares_t picked", "weights"),
        node("Unsqueeze", "weights last", "column"),
        *before,
        node("MatMul", f"{ready} gate", "g"),
        node("Sigmoid", "g", "s"),
        node("Mul", "g s", "silu"),
        node("MatMul", f"{ready} up", "u"),
        node("Mul", "silu u", "product"),
        node("MatMul", "product down", "out"),
        node("Mul", "out column", "weighted"),
        node("ReduceSum", "weighted first", "mixed", keepdims=0),
        node("Shape", "x", "dims"),
        node("Reshape", "mixed dims", "y"),
    ]
    constants = {"flat": [-1, HIDDEN], "experts": EXPERTS, "last": [-1], "first": [0], "spread": [EXPERTS, 1, 1]}
    weights = {name: np.array(number, np.int64) for name, number in constants.items()}
    weights |= {"off_on": np.array([0, 1], np.float32)} | router() | experts()
    return build(nodes, weights, {"y": ACTIVATION})


def dense_moe() -> onnx.ModelProto:
    """Every expert sees every token, and the router's shares decide what counts."""
    return routed([node("Expand", "tokens spread", "copies")], "copies")


def masked_moe() -> onnx.ModelProto:
    """Every expert sees its tokens, and zeros in place of the others."""
    nodes = [
        node("Unsqueeze", "picked last", "mask"),
        node("Unsqueeze", "tokens first", "one"),
        node("Mul", "one mask", "slots"),
    ]
    return routed(nodes, "slots")


def broadcast_moe() -> onnx.ModelProto:
    """The stacks multiply the tokens themselves, [tokens, hidden]."""
    return routed([], "tokens")


def gathered_moe() -> onnx.ModelProto:
    """Each expert has matrices of its own, and gathers its tokens."""
    nodes = [
        node("Reshape", "x flat", "tokens"),
        node("MatMul", "tokens router", "logits"),
        node("Add", "logits router_bias", "biased"),
        node("Softmax", "biased", "shares", axis=-1),
        node("ArgMax", "shares", "best", axis=-1, keepdims=0),
        node("ReduceMax", "shares last", "most", keepdims=1),
        node("Sub", "tokens tokens", "sum_0"),
    ]
    constants = {"flat": [-1, HIDDEN], "last": [-1]} | {f"number_{e}": e for e in range(EXPERTS)}
    weights = {name: np.array(number, np.int64) for name, number in constants.items()} | router()
    for e in range(EXPERTS):
        nodes += [
            node("Equal", f"best number_{e}", f"mine_{e}"),
            node("NonZero", f"mine_{e}", f"found_{e}"),
            node("Transpose", f"found_{e}", f"where_{e}", perm=[1, 0]),
            node("GatherND", f"tokens where_{e}", f"x_{e}"),
            node("MatMul", f"x_{e} gate_{e}", f"g_{e}"),
            node("Sigmoid", f"g_{e}", f"s_{e}"),
            node("Mul", f"g_{e} s_{e}", f"silu_{e}"),
            node("MatMul", f"x_{e} up_{e}", f"u_{e}"),
            node("Mul", f"silu_{e} u_{e}", f"product_{e}"),
            node("MatMul", f"product_{e} down_{e}", f"out_{e}"),
            node("GatherND", f"most where_{e}", f"share_{e}"),
            node("Mul", f"out_{e} share_{e}", f"weighted_{e}"),
            node("ScatterND", f"sum_{e} where_{e} weighted_{e}", f"sum_{e + 1}", reduction="add"),
        ]
        weights |= {f"{name}_{e}": stack[e] for name, stack in experts().items()}
    nodes += [node("Shape", "x", "dims"), node("Reshape", f"sum_{EXPERTS} dims", "y")]
    return build(nodes, weights, {"y": ACTIVATION})
