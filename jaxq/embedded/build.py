"""The embedded model as an ONNX graph, with the nodes and names that exporters give a Llama-like decoder.

Opset 18, float32, standard operators only, dynamic batch and sequence:

    input_ids, attention_mask int64 [batch, sequence]  ->  logits float32 [batch, sequence, vocabulary]

Each linear layer is a MatMul whose second input is an initializer [c_in, c_out].
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from jaxq.embedded.weights import ModelConfig, load_weights

OPSET = 18
IR_VERSION = 8


@dataclass(frozen=True)
class _Scope:
    """Records nodes on a tape, with names that begin with `path`, such as "model/layers.0/mlp"."""

    tape: ir.tape.Tape
    weights: dict[str, np.ndarray]
    path: str

    def inner(self, name: str) -> "_Scope":
        """The scope of that name within this one."""
        return dataclasses.replace(self, path=f"{self.path}/{name}" if self.path else name)

    def op(self, op_type: str, *inputs: ir.Value | None, label: str = "", attributes: dict | None = None) -> ir.Value:
        """Output of a new node "/path/label". The label is the operator's name, for the first such node of a scope."""
        name = f"/{self.path}/{label or op_type}"
        value = self.tape.op(op_type, inputs, attributes, name=name)
        value.name = f"{name}_output_0"
        return value

    def weight(self) -> ir.Value:
        """The weight of this scope as an initializer, such as "model.layers.0.mlp.gate_proj.weight"."""
        name = f"{self.path.replace('/', '.')}.weight"
        return self.tape.initializer(ir.tensor(self.weights[name], name=name))

    def constant(self, label: str, value: np.ndarray | np.generic) -> ir.Value:
        """A constant as an initializer "/path/label"."""
        return self.tape.initializer(ir.tensor(value, name=f"/{self.path}/{label}"))


@dataclass(frozen=True)
class _Shared:
    """Inputs of all layers: cos and sin [sequence, head_size], additive mask [batch, 1, sequence, sequence]."""

    cos: ir.Value
    sin: ir.Value
    mask: ir.Value


def build_model(path: str | Path | None = None) -> ir.Model:
    """The embedded model as an ONNX model in memory.

    Padding may be on either side: no token attends to masked ones, and rotary attention depends on distances only. The
    logits of masked tokens have no meaning.

    Args:
        path: Weights of another training run (see `jaxq.embedded.weights`); the packaged weights by default.

    Returns:
        A model with the inputs `input_ids` and `attention_mask`, int64 [batch, sequence], and the output `logits`,
        float32 [batch, sequence, vocabulary]. It runs on sequences of more than 256 tokens, the length of the training
        samples, but predicts them badly.

    Raises:
        JaxqError: the weights are missing or do not fit their config.

    Example:
        >>> [value.name for value in build_model().graph.inputs]
        ['input_ids', 'attention_mask']
    """
    config, weights = load_weights() if path is None else load_weights(path)
    ids, attention_mask = (
        ir.val(name, dtype=ir.DataType.INT64, shape=("batch", "sequence")) for name in ("input_ids", "attention_mask")
    )
    tape = ir.tape.Tape()
    logits = _decoder(_Scope(tape, weights, ""), ids, attention_mask, config)
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    logits.shape = ir.Shape(("batch", "sequence", config.vocabulary))
    graph = ir.Graph(
        inputs=[ids, attention_mask],
        outputs=[logits],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": OPSET},
        name="jaxq_embedded",
    )
    metadata = {"config": json.dumps(dataclasses.asdict(config), sort_keys=True)}
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="jaxq.embedded", metadata_props=metadata)


def write_model(path: str | Path) -> None:
    """Write the model of `build_model` to an ONNX file of 16 MB; the bytes are always the same."""
    ir.save(build_model(), path)


def _decoder(scope: _Scope, ids: ir.Value, attention_mask: ir.Value, config: ModelConfig) -> ir.Value:
    """Logits [batch, sequence, vocabulary]."""
    model = scope.inner("model")
    embedding = model.inner("embed_tokens")
    x = embedding.op("Gather", embedding.weight(), ids)
    positions = _positions(model.inner("positions"), ids)
    shared = _Shared(
        *_rotary_tables(model.inner("rotary_emb"), positions, config),
        _additive_mask(model.inner("mask"), positions, attention_mask),
    )
    for number in range(config.layers):
        layer = model.inner(f"layers.{number}")
        y = _rms_norm(layer.inner("input_layernorm"), x, config)
        x = layer.op("Add", x, _attention(layer.inner("self_attn"), y, shared, config))
        y = _rms_norm(layer.inner("post_attention_layernorm"), x, config)
        x = layer.op("Add", x, _feed_forward(layer.inner("mlp"), y), label="Add_1")
    return _linear(scope.inner("lm_head"), _rms_norm(model.inner("norm"), x, config))


def _linear(scope: _Scope, x: ir.Value) -> ir.Value:
    return scope.op("MatMul", x, scope.weight())


def _rms_norm(scope: _Scope, x: ir.Value, config: ModelConfig) -> ir.Value:
    """weight * x / sqrt(mean(x^2) + epsilon), as the single operators that exporters write."""
    square = scope.op("Pow", x, scope.constant("exponent", np.float32(2)))
    mean = scope.op("ReduceMean", square, scope.constant("axes", np.array([-1])), attributes={"keepdims": 1})
    shifted = scope.op("Add", mean, scope.constant("epsilon", np.float32(config.norm_epsilon)))
    normed = scope.op("Div", x, scope.op("Sqrt", shifted))
    return scope.op("Mul", scope.weight(), normed)


def _positions(scope: _Scope, ids: ir.Value) -> ir.Value:
    """Positions 0, 1, ... as int64 [sequence]."""
    length = scope.op("Gather", scope.op("Shape", ids), scope.constant("sequence_axis", np.int64(1)))
    return scope.op("Range", scope.constant("start", np.int64(0)), length, scope.constant("step", np.int64(1)))


def _rotary_tables(scope: _Scope, positions: ir.Value, config: ModelConfig) -> tuple[ir.Value, ir.Value]:
    """cos and sin [sequence, head_size] of position / base^(2i / head_size); both halves of a head have the same."""
    half = config.head_size // 2
    frequencies = np.tile(config.rope_base ** (-np.arange(half) / half), 2).astype(np.float32)
    column = scope.op("Unsqueeze", positions, scope.constant("axes", np.array([1])))
    column = scope.op("Cast", column, attributes={"to": ir.DataType.FLOAT})
    angles = scope.op("Mul", column, scope.constant("inv_freq", frequencies))
    return scope.op("Cos", angles), scope.op("Sin", angles)


def _additive_mask(scope: _Scope, positions: ir.Value, attention_mask: ir.Value) -> ir.Value:
    """0 where a query may attend to a key, the lowest float32 elsewhere: [batch, 1, sequence, sequence]."""
    column = scope.op("Unsqueeze", positions, scope.constant("column_axes", np.array([1])))
    causal = scope.op("GreaterOrEqual", column, positions)
    real = scope.op("Cast", attention_mask, attributes={"to": ir.DataType.BOOL})
    real = scope.op("Unsqueeze", real, scope.constant("key_axes", np.array([1, 2])), label="Unsqueeze_1")
    hidden = scope.constant("hidden", np.finfo(np.float32).min)
    return scope.op("Where", scope.op("And", causal, real), scope.constant("visible", np.float32(0)), hidden)


def _attention(scope: _Scope, x: ir.Value, shared: _Shared, config: ModelConfig) -> ir.Value:
    """Grouped-query attention with rotary positions; x is [batch, sequence, hidden]."""
    q = _rotated(scope.inner("q_rotary"), _heads(scope.inner("q_proj"), x, config.heads, config), shared, config)
    k = _rotated(scope.inner("k_rotary"), _heads(scope.inner("k_proj"), x, config.kv_heads, config), shared, config)
    v = _heads(scope.inner("v_proj"), x, config.kv_heads, config)
    k, v = (_repeated(scope.inner(name), y, config) for name, y in (("k_repeat", k), ("v_repeat", v)))
    k_transposed = scope.op("Transpose", k, attributes={"perm": [0, 1, 3, 2]})
    scale = scope.constant("scale", np.float32(1 / math.sqrt(config.head_size)))
    scores = scope.op("Mul", scope.op("MatMul", q, k_transposed), scale)
    probabilities = scope.op("Softmax", scope.op("Add", scores, shared.mask), attributes={"axis": -1})
    values = scope.op("MatMul", probabilities, v, label="MatMul_1")
    values = scope.op("Transpose", values, label="Transpose_1", attributes={"perm": [0, 2, 1, 3]})
    size = scope.constant("shape", np.array([0, 0, config.heads * config.head_size]))
    return _linear(scope.inner("o_proj"), scope.op("Reshape", values, size))


def _heads(scope: _Scope, x: ir.Value, count: int, config: ModelConfig) -> ir.Value:
    """A projection of x split into heads: [batch, count, sequence, head_size]."""
    shape = scope.constant("shape", np.array([0, 0, count, config.head_size]))
    return scope.op("Transpose", scope.op("Reshape", _linear(scope, x), shape), attributes={"perm": [0, 2, 1, 3]})


def _rotated(scope: _Scope, x: ir.Value, shared: _Shared, config: ModelConfig) -> ir.Value:
    """x cos + (-second half of x, first half of x) sin, for x [batch, heads, sequence, head_size]."""
    start, middle, end = (
        scope.constant(label, np.array([value]))
        for label, value in (("start", 0), ("middle", config.head_size // 2), ("end", config.head_size))
    )
    axis = scope.constant("axis", np.array([-1]))
    first = scope.op("Slice", x, start, middle, axis)
    second = scope.op("Neg", scope.op("Slice", x, middle, end, axis, label="Slice_1"))
    rotated_half = scope.op("Concat", second, first, attributes={"axis": -1})
    return scope.op("Add", scope.op("Mul", x, shared.cos), scope.op("Mul", rotated_half, shared.sin, label="Mul_1"))


def _repeated(scope: _Scope, x: ir.Value, config: ModelConfig) -> ir.Value:
    """[batch, kv_heads, sequence, head_size] to [batch, heads, ...]: each key or value head serves a group of heads."""
    groups = config.heads // config.kv_heads
    x = scope.op("Unsqueeze", x, scope.constant("axes", np.array([2])))
    x = scope.op("Expand", x, scope.constant("groups", np.array([1, 1, groups, 1, 1])))
    return scope.op("Reshape", x, scope.constant("shape", np.array([0, config.heads, -1, config.head_size])))


def _feed_forward(scope: _Scope, x: ir.Value) -> ir.Value:
    """SwiGLU: down(silu(gate(x)) * up(x))."""
    gate = _linear(scope.inner("gate_proj"), x)
    silu = scope.inner("act_fn").op("Mul", gate, scope.inner("act_fn").op("Sigmoid", gate))
    return _linear(scope.inner("down_proj"), scope.op("Mul", silu, _linear(scope.inner("up_proj"), x)))
