"""Small models with branches and loops, whose weights are in the main graph and in subgraphs."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.support.build import ACTIVATION, HIDDEN, branch, build, node, value, vector, weight


def conditional() -> onnx.ModelProto:
    """One branch holds a weight; the other reads a weight and an activation of the main graph."""
    then = branch(node("MatMul", "h inner", "t"), weights={"inner": weight(HIDDEN, HIDDEN, seed=2)})
    otherwise = branch(node("MatMul", "h outer", "e"))
    nodes = [
        node("MatMul", "x first", "h"),
        node("If", "condition", "z", then_branch=then, else_branch=otherwise),
        node("MatMul", "z second", "y"),
    ]
    weights = {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate(["first", "outer", "second"])}
    return build(nodes, weights | {"condition": np.array(False)}, {"y": ACTIVATION})


def nested_conditional() -> onnx.ModelProto:
    """A branch within a branch reads an activation that nothing else between reads."""
    inmost = branch(node("Relu", "h", "i"))
    middle = branch(node("If", "condition", "m", then_branch=inmost, else_branch=branch(node("Neg", "h", "j"))))
    nodes = [
        node("MatMul", "x first", "h"),
        node("If", "condition", "z", then_branch=middle, else_branch=branch(node("Abs", "x", "e"))),
        node("MatMul", "z second", "y"),
    ]
    weights = {name: weight(HIDDEN, HIDDEN, seed=i) for i, name in enumerate(["first", "second"])}
    return build(nodes, weights | {"condition": np.array(True)}, {"y": ACTIVATION})


def merged(op: str = "MatMul", dtype: type = np.float32) -> onnx.ModelProto:
    """As merged decoders: both branches read weights of the main graph, one of which it reads itself too.

    ``both`` is read by two branches, ``all`` by these and by the main graph, ``own`` lies in a branch, ``deep`` in a
    branch of a branch; an input says which branch runs.
    """
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = ("n", HIDDEN)

    def part(nodes: Sequence[NodeProto], out: str, *own: str) -> onnx.GraphProto:
        held = [numpy_helper.from_array(weight(HIDDEN, HIDDEN, seed=len(name), dtype=dtype), name) for name in own]
        return helper.make_graph(list(nodes), out, [], [value(out, shape, kind)], held)

    def product(x: str, w: str, y: str) -> NodeProto:
        return node("Gemm", f"{x} {w} bias", y, transB=1) if op == "Gemm" else node("MatMul", f"{x} {w}", y)

    deep = part([product("t0", "deep_w", "d")], "d", "deep_w")
    shallow = part([product("t0", "both", "s")], "s")
    then = part(
        [product("h", "both", "t"), node("Relu", "t", "t0"), node("If", "c", "t1", then_branch=deep,
         else_branch=shallow), product("t1", "all", "t2"), product("t2", "own", "t3")], "t3", "own",
    )  # fmt: skip
    other = part([product("h", "all", "e"), node("Tanh", "e", "e0"), product("e0", "both", "e1")], "e1")
    nodes = [
        product("x", "all", "h"),
        node("If", "c", "z", then_branch=then, else_branch=other),
        product("z", "last", "y"),
    ]
    weights = {name: weight(HIDDEN, HIDDEN, seed=i, dtype=dtype) for i, name in enumerate(("all", "both", "last"))}
    inputs = [value("x", shape, kind), value("c", (), TensorProto.BOOL)]
    return build(nodes, weights | {"bias": vector().astype(dtype)}, {"y": shape}, inputs, dtype=kind)


def looped() -> onnx.ModelProto:
    """A loop that multiplies by a weight of its own and by one of the main graph, as often as an input says."""
    body = helper.make_graph(
        [
            node("Identity", "go", "go_on"),
            node("MatMul", "state inner", "a"),
            node("Tanh", "a", "b"),
            node("MatMul", "b outer", "next"),
        ],
        "body",
        [value("i", (), TensorProto.INT64), value("go", (), TensorProto.BOOL), value("state", ("n", HIDDEN))],
        [value("go_on", (), TensorProto.BOOL), value("next", ("n", HIDDEN))],
        [numpy_helper.from_array(weight(HIDDEN, HIDDEN, seed=7), "inner")],
    )
    inputs = [value("x", ("n", HIDDEN)), value("times", (), TensorProto.INT64)]
    nodes = [node("Loop", "times true x", "y", body=body)]
    weights = {"outer": weight(HIDDEN, HIDDEN), "true": np.array(True)}
    return build(nodes, weights, {"y": ("n", HIDDEN)}, inputs)
