"""Decoders as optimum exports them: plain ONNX operators, with and without a cache, from the same weights."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.support.models import node, value, vector, weight

HIDDEN, HEADS, HEAD, FFN, LAYERS, VOCABULARY = 64, 2, 32, 96, 2, 128
PAST = ("batch_size", HEADS, "past_sequence_length", HEAD)


def decoder(
    past: Sequence[int | str | None] | None = None,
    merged: bool = False,
    positions: bool = True,
    dtype: int = TensorProto.FLOAT,
    mask_dtype: int = TensorProto.INT64,
) -> onnx.ModelProto:
    """Two layers of attention over ``concat(past, present)``, masked by order and by ``attention_mask``.

    Args:
        past: Shape of the inputs ``past_key_values.*``, four axes with the tokens on axis 2, or five with keys and
            values side by side in ``past_0`` and so on; None for a model without a cache.
        merged: With an input ``use_cache_branch``, which nothing reads.
        positions: With an input ``position_ids``; else they are counted from the mask.
        dtype: FLOAT or FLOAT16.
        mask_dtype: Type of ``attention_mask``.
    """
    ids = ["batch_size", "sequence_length"]
    inputs = [value("input_ids", ids, TensorProto.INT64)]
    inputs.append(value("attention_mask", ["batch_size", "past_sequence_length + sequence_length"], mask_dtype))
    nodes = [*_masks(), *_positions(positions)]
    if positions:
        inputs.append(value("position_ids", ids, TensorProto.INT64))
    if merged:
        inputs.append(value("use_cache_branch", [1], TensorProto.BOOL))
    outputs = [value("logits", [*ids, VOCABULARY], dtype)]
    nodes += [node("Gather", "embed input_ids", "e"), node("Gather", "wpe where", "p"), node("Add", "e p", "x0")]
    for i in range(LAYERS):
        inputs += _cache_inputs(past, i, dtype)
        nodes += _layer(i, past)
        outputs += (
            [value(f"present.{i}.{kind}", ["batch", HEADS, "total", HEAD], dtype) for kind in ("key", "value")]
            if past
            else []
        )
    nodes += [node("LayerNormalization", f"x{LAYERS} norm bias", "last"), node("MatMul", "last lm_head", "logits")]
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    arrays = {name: a.astype(kind) if a.dtype == np.float32 else a for name, a in _weights().items()}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if dtype == TensorProto.FLOAT16:
        for each in model.graph.node:
            for attribute in each.attribute:
                if each.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                    attribute.i = dtype
    onnx.checker.check_model(model)
    return model


def _masks() -> list[NodeProto]:
    """0 where a token may look, -10000 where not: [batch, 1, sequence, past + sequence]."""
    return [
        node("Shape", "input_ids", "n", start=1, end=2),
        node("Shape", "attention_mask", "all", start=1, end=2),
        node("Sub", "all n", "before"),
        *(node("Squeeze", name, f"{name}_0") for name in ("n", "all", "before")),
        node("Range", "zero all_0 one", "columns"),
        node("Range", "before_0 all_0 one", "rows"),
        node("Unsqueeze", "rows axis1", "rows1"),
        node("LessOrEqual", "columns rows1", "order"),
        node("Cast", "attention_mask", "real", to=TensorProto.BOOL),
        node("Unsqueeze", "real axes12", "real4"),
        node("And", "order real4", "seen"),
        node("Where", "seen off on", "hidden"),
    ]


def _positions(given: bool) -> list[NodeProto]:
    if given:
        return [node("Identity", "position_ids", "where")]
    return [
        node("Cast", "attention_mask", "counted", to=TensorProto.INT64),
        node("CumSum", "counted one", "sums"),
        node("Sub", "sums one", "shifted"),
        node("Max", "shifted zero", "positive"),
        node("Slice", "positive before all axis1", "where"),
    ]


def _cache_inputs(past: Sequence[int | str | None] | None, i: int, dtype: int) -> list[onnx.ValueInfoProto]:
    if past is None:
        return []
    if len(past) == 5:
        return [value(f"past_{i}", past, dtype)]
    return [value(f"past_key_values.{i}.{kind}", past, dtype) for kind in ("key", "value")]


def _layer(i: int, past: Sequence[int | str | None] | None) -> list[NodeProto]:
    nodes = [node("LayerNormalization", f"x{i} norm bias", f"n{i}")]
    for kind in ("query", "key", "value"):
        nodes += [
            node("MatMul", f"n{i} {kind}{i}", f"{kind}_flat{i}"),
            node("Reshape", f"{kind}_flat{i} heads", f"{kind}_heads{i}"),
            node("Transpose", f"{kind}_heads{i}", f"{kind}_new{i}", perm=[0, 2, 1, 3]),
        ]
    for j, kind in enumerate(("key", "value")):
        old, new = f"past_key_values.{i}.{kind}", f"{kind}_new{i}"
        if past is not None and len(past) == 5:
            old = f"{kind}_old{i}"
            nodes.append(node("Gather", f"past_{i} {'zero' if j == 0 else 'one'}", old, axis=0))
        whole = f"present.{i}.{kind}"
        nodes.append(node("Concat", f"{old} {new}", whole, axis=2) if past else node("Identity", new, whole))
    nodes += [
        node("Transpose", f"present.{i}.key", f"keys{i}", perm=[0, 1, 3, 2]),
        node("MatMul", f"query_new{i} keys{i}", f"raw{i}"),
        node("Mul", f"raw{i} scale", f"scaled{i}"),
        node("Add", f"scaled{i} hidden", f"masked{i}"),
        node("Softmax", f"masked{i}", f"shares{i}", axis=-1),
        node("MatMul", f"shares{i} present.{i}.value", f"mixed{i}"),
        node("Transpose", f"mixed{i}", f"rows{i}_", perm=[0, 2, 1, 3]),
        node("Reshape", f"rows{i}_ flat", f"joined{i}"),
        node("MatMul", f"joined{i} out{i}", f"attended{i}"),
        node("Add", f"x{i} attended{i}", f"y{i}"),
        node("LayerNormalization", f"y{i} norm bias", f"m{i}"),
        node("MatMul", f"m{i} up{i}", f"u{i}"),
        node("Relu", f"u{i}", f"r{i}"),
        node("MatMul", f"r{i} down{i}", f"d{i}"),
        node("Add", f"y{i} d{i}", f"x{i + 1}"),
    ]
    return nodes


def _weights() -> Mapping[str, np.ndarray]:
    constants = {"zero": np.int64(0), "one": np.int64(1), "axis1": np.array([1]), "axes12": np.array([1, 2])}
    constants |= {"heads": np.array([0, 0, HEADS, HEAD]), "flat": np.array([0, 0, HIDDEN])}
    constants |= {"off": np.float32(0), "on": np.float32(-10000), "scale": np.float32(HEAD**-0.5)}
    weights = {"embed": weight(VOCABULARY, HIDDEN) * 10, "wpe": weight(64, HIDDEN, seed=1) * 4, "norm": vector()}
    weights |= {"bias": vector(seed=1) - 1, "lm_head": weight(HIDDEN, VOCABULARY, seed=2)}
    for i in range(LAYERS):
        for j, name in enumerate(("query", "key", "value", "out")):
            weights[f"{name}{i}"] = weight(HIDDEN, HIDDEN, seed=10 * i + j)
        weights |= {f"up{i}": weight(HIDDEN, FFN, seed=i), f"down{i}": weight(FFN, HIDDEN, seed=i)}
    return {name: np.asarray(a) for name, a in (constants | weights).items()}


def merged_decoder(opset: int = 18) -> onnx.ModelProto:
    """Both decoders in one file, as optimum merges them: ``use_cache_branch`` says which branch of an If runs.

    The then-branch puts the past before the tokens, the else-branch leaves it out; both read the weights of the main
    graph.
    """
    model = decoder(PAST, merged=True)
    names = [output.name for output in model.graph.output]
    then, other = _branch(model.graph, "with_past"), _branch(model.graph, "without_past")
    for each in other.node:
        if each.op_type == "Concat":  # of the past and the tokens
            each.CopyFrom(helper.make_node("Identity", [each.input[1]], list(each.output), each.name))
    del model.graph.node[:]
    model.graph.node.append(node("If", "use_cache_branch", " ".join(names), then_branch=then, else_branch=other))
    model.opset_import[0].version = opset
    model.ir_version = {17: 8, 18: 8, 21: 10}[opset]
    onnx.checker.check_model(model, full_check=True)
    return model


def _branch(graph: onnx.GraphProto, ending: str) -> onnx.GraphProto:
    """The nodes of a graph, with names of their own for all that they make."""
    made = {name for each in graph.node for name in each.output}
    branch = onnx.GraphProto(name=ending, node=graph.node, output=graph.output)
    for each in branch.node:
        each.name += f"/{ending}"
        for part in (each.input, each.output):
            part[:] = [f"{name}/{ending}" if name in made else name for name in part]
    for output in branch.output:
        output.name += f"/{ending}"
    return branch
