"""Small ONNX models, one for each shape that exporters give a linear layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

HIDDEN, FFN = 64, 96
ACTIVATION = ("batch", "sequence", HIDDEN)
Shape = Sequence[int | str | None]


def weight(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Normal numbers that keep the size of what they are multiplied with."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)


def vector(size: int = HIDDEN, seed: int = 0) -> np.ndarray:
    """Numbers around one, as in a norm's weight."""
    return (1 + 0.3 * np.random.default_rng([seed, size]).standard_normal(size)).astype(np.float32)


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    """Activations with a few channels that are ten times larger: AWQ has something to scale."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x[..., :: max(1, shape[-1] // 4)] *= 10
    return x


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node named after its first output, as "/y/MatMul"; inputs and outputs apart by spaces."""
    name = f"/{outputs.split(maxsplit=1)[0]}/{op}"
    return helper.make_node(op, inputs.split(), outputs.split(), name, **attributes)


def value(name: str, shape: Shape | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def build(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, np.ndarray],
    outputs: Mapping[str, Shape],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    *,
    opset: int = 18,
    dtype: int = TensorProto.FLOAT,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A checked model; its input is ``x`` [batch, sequence, HIDDEN] unless said otherwise."""
    ins = list(inputs) or [value("x", ACTIVATION, dtype)]
    outs = [value(name, shape, dtype) for name, shape in outputs.items()]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "small", ins, outs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


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


def branch(*nodes: NodeProto, weights: Mapping[str, np.ndarray] | None = None) -> onnx.GraphProto:
    """A branch of an If; its output is the last node's."""
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    return helper.make_graph(list(nodes), "branch", [], [value(nodes[-1].output[0], ACTIVATION)], initializers)


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
