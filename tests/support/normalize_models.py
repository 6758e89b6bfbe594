"""Models whose products read weights through other nodes, in functions, or by unusual Gemm nodes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.support.models import ACTIVATION, FFN, HIDDEN, build, node, value, weight

WIDE = (*ACTIVATION[:2], FFN)


@dataclass(frozen=True)
class NormalizedModel:
    """A model, and the name that each weight to be quantized gets by the value of the model that it is.

    Values that are no initializers of the model are computed from them.
    """

    make: Callable[[int], onnx.ModelProto]
    values: Mapping[str, str] = field(default_factory=dict)


def ir_version(opset: int) -> int:
    """What onnx's releases with that opset wrote."""
    return {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}[opset]


def linear(
    nodes: Sequence[NodeProto], weights: Mapping[str, np.ndarray], opset: int, size: int = FFN
) -> onnx.ModelProto:
    return build(nodes, weights, {"y": (*ACTIVATION[:2], size)}, opset=opset, ir_version=ir_version(opset))


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def transposed(opset: int = 18) -> onnx.ModelProto:
    nodes = [node("Transpose", "w", "wt", perm=[1, 0]), node("MatMul", "x wt", "y")]
    return linear(nodes, {"w": weight(FFN, HIDDEN)}, opset)


def cast(opset: int = 18) -> onnx.ModelProto:
    """Weights in float16, products in float32."""
    nodes = [node("Cast", "w", "wf", to=TensorProto.FLOAT), node("MatMul", "x wf", "y")]
    return linear(nodes, {"w": weight(HIDDEN, FFN, dtype=np.float16)}, opset)


def cast_transposed(opset: int = 18) -> onnx.ModelProto:
    nodes = [
        node("Identity", "w", "wi"),
        node("Transpose", "wi", "wt"),
        node("Cast", "wt", "wf", to=TensorProto.FLOAT),
        node("Identity", "wf", "wj"),
        node("MatMul", "x wj", "y"),
    ]
    return linear(nodes, {"w": weight(FFN, HIDDEN, dtype=np.float16)}, opset)


def reshaped(opset: int = 18) -> onnx.ModelProto:
    nodes = [
        node("Reshape", "w shape", "wr"),
        node("Unsqueeze", "wr zero", "wu"),
        node("Squeeze", "wu zero", "ws"),
        node("Flatten", "ws", "wf", axis=1),
        node("MatMul", "x wf", "y"),
    ]
    weights = {"w": weight(HIDDEN, 2, FFN // 2), "shape": numbers(0, -1), "zero": numbers(0)}
    return linear(nodes, weights, opset)


def experts(opset: int = 18) -> onnx.ModelProto:
    """Each expert of a stack by its number."""
    nodes = []
    for i in range(3):
        nodes += [
            node("Gather", f"stack i{i}", f"e{i}", axis=0),
            node("Transpose", f"e{i}", f"t{i}", perm=[1, 0]),
            node("MatMul", f"x t{i}", f"y{i}"),
        ]
    weights = {"stack": weight(3, FFN, HIDDEN), **{f"i{i}": np.array(i - 3 * (i == 2)) for i in range(3)}}
    return linear([*nodes, node("Sum", "y0 y1 y2", "y")], weights, opset)


def packed(opset: int = 18) -> onnx.ModelProto:
    """Three weights in one, taken apart by Split and by Slice."""
    nodes = [
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("Split", "wt sizes", "q kv", axis=1),
        node("Slice", "kv start middle axes", "k"),
        node("Slice", "kv middle stop axes", "v"),
        *(node("MatMul", f"x {name}", f"{name}_out") for name in "qkv"),
        node("Concat", "q_out k_out v_out", "y", axis=-1),
    ]
    weights = {"w": weight(2 * FFN, HIDDEN), "sizes": numbers(FFN, FFN), "axes": numbers(-1), "start": numbers(0)}
    weights |= {"middle": numbers(32), "stop": numbers(1 << 62)}
    return linear(nodes, weights, opset, 2 * FFN)


def twice(opset: int = 18) -> onnx.ModelProto:
    """A weight transposed by two nodes, one for each reader."""
    nodes = [
        node("Relu", "x", "r"),
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("Transpose", "w", "wt2"),
        node("MatMul", "x wt", "a"),
        node("MatMul", "r wt2", "b"),
        node("Add", "a b", "y"),
    ]
    return linear(nodes, {"w": weight(FFN, HIDDEN)}, opset)


def both_ways(opset: int = 18) -> onnx.ModelProto:
    """A weight as it is and transposed."""
    nodes = [node("MatMul", "x w", "h"), node("Transpose", "w", "wt"), node("MatMul", "h wt", "y")]
    return linear(nodes, {"w": weight(HIDDEN, FFN)}, opset, HIDDEN)


def in_constants(opset: int = 18) -> onnx.ModelProto:
    """Weights in Constant nodes: one behind a Transpose, one of few numbers, one of a list of them."""
    nodes = [
        node("Constant", "", "w", value=numpy_helper.from_array(weight(FFN, HIDDEN))),
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("MatMul", "x wt", "h"),
        node("Constant", "", "list", value_floats=weight(FFN * 2).tolist()),
        node("Constant", "", "shape", value_ints=[FFN, 2]),
        node("Reshape", "list shape", "wl"),
        node("MatMul", "h wl", "j"),
        node("Constant", "", "few", value=numpy_helper.from_array(weight(2, 4))),
        node("MatMul", "j few", "k"),
        node("Constant", "", "factor", value_float=2.0),
        node("Mul", "k factor", "y"),
    ]
    return linear(nodes, {}, opset, 4)


def sparse(array: np.ndarray, name: str, flat: bool) -> onnx.SparseTensorProto:
    """An array as its numbers and where they stand: by their positions, or by coordinates."""
    values = numpy_helper.from_array(array[array != 0], name)
    where = np.flatnonzero(array) if flat else np.argwhere(array)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(where.astype(np.int64), "where"), array.shape)


def thinned(*shape: int) -> np.ndarray:
    w = weight(*shape)
    return np.where(np.abs(w) > np.abs(w).mean(), w, 0)


def sparse_weights(opset: int = 18) -> onnx.ModelProto:
    """An initializer and a constant, both sparse."""
    hold = node("Constant", "", "v", sparse_value=sparse(thinned(FFN, FFN), "v", flat=True))
    nodes = [hold, node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    model = linear(nodes, {"w": thinned(HIDDEN, FFN)}, opset)
    model.graph.ClearField("initializer")
    model.graph.sparse_initializer.append(sparse(thinned(HIDDEN, FFN), "w", flat=False))
    onnx.checker.check_model(model)
    return model


def unnamed_branches(opset: int = 18) -> onnx.ModelProto:
    """Unnamed nodes with subgraphs; a branch reads a weight of the main graph transposed."""
    inner = [helper.make_node("Transpose", ["w"], ["wt"]), helper.make_node("MatMul", ["x", "wt"], ["t"])]
    then = helper.make_graph(inner, "then", [], [value("t", WIDE)])
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["e"])],
        "other",
        [],
        [value("e", WIDE)],
        [numpy_helper.from_array(weight(HIDDEN, FFN), "v")],
    )
    nodes = [
        helper.make_node("If", ["condition"], ["z"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["z", "last"], ["y"]),
    ]
    weights = {"condition": np.array(True), "w": weight(FFN, HIDDEN), "last": weight(FFN, FFN)}
    return linear(nodes, weights, opset)


def gemm(
    shape: tuple[int, ...] | None = None,
    computed: bool = False,
    opset: int = 18,
    dtype: type = np.float32,
    **how: float,
) -> onnx.ModelProto:
    """A Gemm on 8 rows with any attributes and a bias of any shape, a constant or not."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    w = weight(FFN, HIDDEN, dtype=dtype) if how.get("transB") else weight(HIDDEN, FFN, dtype=dtype)
    weights = {"w": w}
    nodes = []
    if shape is not None:
        weights["c"] = np.asarray(np.random.default_rng(len(shape)).standard_normal(shape), dtype)
        nodes += [node("Neg", "c", "bias")] if computed else []
    inputs = ["x", "w", *(["bias" if computed else "c"] * (shape is not None))]
    x = value("x", (HIDDEN, 8) if how.get("transA") else (8, HIDDEN), kind)
    nodes += [node("Gemm", " ".join(inputs), "y", **how)]
    return build(nodes, weights, {"y": (8, FFN)}, [x], opset=opset, dtype=kind, ir_version=ir_version(opset))


def with_functions(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, np.ndarray],
    functions: Sequence[onnx.FunctionProto],
    opset: int = 18,
    size: int = FFN,
    check: bool = True,
) -> onnx.ModelProto:
    outs = [value("y", (*ACTIVATION[:2], size))]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "small", [value("x", ACTIVATION)], outs, tensors)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    model = helper.make_model(
        graph, opset_imports=imports, functions=list(functions), ir_version=max(8, ir_version(opset))
    )
    if check:
        onnx.checker.check_model(model, full_check=True)
    return model


def function(
    name: str,
    inputs: str,
    outputs: str,
    nodes: Sequence[NodeProto],
    opset: int = 18,
    attributes: Sequence[str] = (),
    defaults: Sequence[onnx.AttributeProto] = (),
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_function(
        "local", name, inputs.split(), outputs.split(), list(nodes), imports, attributes, list(defaults)
    )


def call(op: str, inputs: str, outputs: str, **attributes: int | float) -> NodeProto:
    return node(op, inputs, outputs, domain="local", **attributes)


def referring(op: str, inputs: str, outputs: str, **names: str) -> NodeProto:
    """A node in a function whose attributes are the function's."""
    made = node(op, inputs, outputs)
    for name, theirs in names.items():
        kind = onnx.AttributeProto.INTS if name == "perm" else onnx.AttributeProto.INT
        made.attribute.add(name=name, ref_attr_name=theirs, type=kind)
    return made


def given(opset: int = 18, own: int | None = None) -> onnx.ModelProto:
    """A linear layer as a function, called twice with other weights, beside a function without weights."""
    own = own or opset
    layer = [node("Transpose", "w", "wt", perm=[1, 0]), node("MatMul", "a wt", "p"), call("Act", "p", "q")]
    act = [node("Sigmoid", "v", "s"), node("Mul", "v s", "u")]
    functions = [function("Act", "v", "u", act, own), function("Linear", "a w", "q", layer, own)]
    nodes = [call("Linear", "x up", "h"), call("Linear", "h down", "i"), call("Act", "i", "y")]
    return with_functions(nodes, {"up": weight(FFN, HIDDEN), "down": weight(HIDDEN, FFN)}, functions, opset, HIDDEN)


def attributed(opset: int = 18) -> onnx.ModelProto:
    """Functions in functions, with attributes that are passed on, or have a default."""
    inner = function("Swap", "w", "t", [referring("Transpose", "w", "t", perm="order")], opset, ["order"])
    swap = call("Swap", "w", "wt")
    swap.attribute.add(name="order", ref_attr_name="axes", type=onnx.AttributeProto.INTS)
    nodes = [swap, node("MatMul", "a wt", "p"), referring("Softmax", "p", "q", axis="axis")]
    outer = function("Layer", "a w", "q", nodes, opset, ["axes"], [helper.make_attribute("axis", -1)])
    first, second = call("Layer", "x up", "h"), call("Layer", "h down", "y", axis=1)
    for each, perm in ((first, [1, 0]), (second, [0, 1])):
        each.attribute.append(helper.make_attribute("axes", perm))
    weights = {"up": weight(FFN, HIDDEN), "down": weight(FFN, HIDDEN)}
    return with_functions([first, second], weights, [inner, outer], opset, HIDDEN)


def transposed_by_function(opset: int = 18) -> onnx.ModelProto:
    """A function that holds no product is given a weight; another holds a weight and gives it."""
    hold = node("Constant", "", "c", value=numpy_helper.from_array(weight(FFN, HIDDEN)))
    functions = [
        function("Swap", "w", "t", [node("Transpose", "w", "t", perm=[1, 0])], opset),
        function("Hold", "", "c", [hold], opset),
    ]
    nodes = [call("Swap", "w", "wt"), node("MatMul", "x wt", "h"), call("Hold", "", "c"), node("MatMul", "h c", "y")]
    return with_functions(nodes, {"w": weight(FFN, HIDDEN)}, functions, opset, HIDDEN)


NORMALIZED = {
    "transposed": NormalizedModel(transposed, {"w_transposed": "wt"}),
    "cast": NormalizedModel(cast, {"w_float32": "wf"}),
    "cast_transposed": NormalizedModel(cast_transposed, {"w_transposed_float32": "wj"}),
    "reshaped": NormalizedModel(reshaped, {"w_reshaped_reshaped_reshaped_reshaped": "wf"}),
    "experts": NormalizedModel(experts, {f"stack_{i}_transposed": f"t{i}" for i in range(3)}),
    "packed": NormalizedModel(
        packed,
        {
            f"w_transposed_0_to_{FFN}": "q",
            f"w_transposed_{FFN}_to_{2 * FFN}_0_to_32": "k",
            f"w_transposed_{FFN}_to_{2 * FFN}_32_to_{FFN}": "v",
        },
    ),
    "twice": NormalizedModel(twice, {"w_transposed": "wt wt2"}),
    "both_ways": NormalizedModel(both_ways, {"w": "w", "w_transposed": "wt"}),
    "in_constants": NormalizedModel(in_constants, {"w_transposed": "wt", "list_reshaped": "wl", "few": "few"}),
    "given": NormalizedModel(given),
    "attributed": NormalizedModel(attributed),
    "transposed_by_function": NormalizedModel(transposed_by_function),
}
"""Models by name. Those with functions hold their weights' values where no name reaches them."""
