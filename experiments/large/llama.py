"""A Llama-shaped decoder with random weights as an ONNX graph; the weights are made when the file is written.

Opset 18, float32, standard operators:

    input_ids, attention_mask, position_ids int64 [batch, sequence]  ->  logits float32 [batch, sequence, vocabulary]
"""

import math
import zlib
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from jaxq.embedded.weights import ModelConfig, weight_shapes

OPSET = 18
IR_VERSION = 8


def make_weight(name: str, shape: tuple[int, ...], layers: int, seed: int) -> np.ndarray:
    """A weight, from its name and the seed alone.

    Products keep the size of what they multiply, and what all layers add to the residual stream is as large as the
    embedding, so that activations stay sane however many layers there are. Norm weights are lognormal: some channels
    are several times larger than others, as in trained models.
    """
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    array = random.standard_normal(shape, np.float32)
    if len(shape) == 1:
        return np.exp(0.5 * array)
    if name.endswith("embed_tokens.weight"):
        return array
    array *= np.float32(1 / math.sqrt(shape[0]))
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        array *= np.float32(1 / math.sqrt(2 * layers))
    return array


def build_llama(config: ModelConfig, seed: int = 0) -> ir.Model:
    """The model; each weight is made anew whenever it is read."""
    inputs = [
        ir.val(name, dtype=ir.DataType.INT64, shape=("batch", "sequence"))
        for name in ("input_ids", "attention_mask", "position_ids")
    ]
    tape = ir.tape.Tape()
    scope = _Scope(tape, config, _lazy_weights(tape, config, seed))
    logits = _decoder(scope, *inputs)
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    logits.shape = ir.Shape(("batch", "sequence", config.vocabulary))
    graph = ir.Graph(
        inputs, [logits], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": OPSET}, name="llama"
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="experiments.large")


def _lazy_weights(tape: ir.tape.Tape, config: ModelConfig, seed: int) -> dict[str, ir.Value]:
    made = {}
    for name, shape in weight_shapes(config).items():
        make = partial(make_weight, name, shape, config.layers, seed)
        tensor = ir.LazyTensor(partial(_tensor, make), ir.DataType.FLOAT, ir.Shape(shape), name=name)
        made[name] = tape.initializer(tensor, name)
    return made


def _tensor(make: partial[np.ndarray]) -> ir.Tensor:
    return ir.Tensor(make())


@dataclass(frozen=True)
class _Scope:
    """Records nodes on a tape; ``path`` leads their names, as "model/layers.0/mlp"."""

    tape: ir.tape.Tape
    config: ModelConfig
    weights: dict[str, ir.Value]
    path: str = ""

    def inner(self, name: str) -> "_Scope":
        return replace(self, path=f"{self.path}/{name}" if self.path else name)

    def op(self, op_type: str, *inputs: ir.Value, label: str = "", attributes: dict | None = None) -> ir.Value:
        name = f"/{self.path}/{label or op_type}"
        value = self.tape.op(op_type, inputs, attributes, name=name)
        value.name = f"{name}_output_0"
        return value

    @property
    def weight(self) -> ir.Value:
        return self.weights[f"{self.path.replace('/', '.')}.weight"]

    def constant(self, label: str, value: object, dtype: type = np.int64) -> ir.Value:
        return self.tape.initializer(ir.tensor(np.asarray(value, dtype), name=f"/{self.path}/{label}"))

    def linear(self, name: str, x: ir.Value) -> ir.Value:
        inner = self.inner(name)
        return inner.op("MatMul", x, inner.weight)


@dataclass(frozen=True)
class _Shared:
    """Shared by all layers: cos, sin [batch, 1, sequence, head_size], additive mask [batch, 1, sequence, sequence]."""

    cos: ir.Value
    sin: ir.Value
    mask: ir.Value


def _decoder(scope: _Scope, ids: ir.Value, attention_mask: ir.Value, positions: ir.Value) -> ir.Value:
    model = scope.inner("model")
    embedding = model.inner("embed_tokens")
    x = embedding.op("Gather", embedding.weight, ids)
    cos, sin = _rotary_tables(model.inner("rotary_emb"), positions)
    shared = _Shared(cos, sin, _additive_mask(model.inner("mask"), attention_mask, positions))
    for number in range(scope.config.layers):
        layer = model.inner(f"layers.{number}")
        y = _rms_norm(layer.inner("input_layernorm"), x)
        x = layer.op("Add", x, _attention(layer.inner("self_attn"), y, shared))
        y = _rms_norm(layer.inner("post_attention_layernorm"), x)
        x = layer.op("Add", x, _feed_forward(layer.inner("mlp"), y), label="Add_1")
    return scope.linear("lm_head", _rms_norm(model.inner("norm"), x))


def _rms_norm(scope: _Scope, x: ir.Value) -> ir.Value:
    square = scope.op("Pow", x, scope.constant("exponent", 2, np.float32))
    mean = scope.op("ReduceMean", square, scope.constant("axes", [-1]), attributes={"keepdims": 1})
    shifted = scope.op("Add", mean, scope.constant("epsilon", scope.config.norm_epsilon, np.float32))
    return scope.op("Mul", scope.weight, scope.op("Div", x, scope.op("Sqrt", shifted)))


def _rotary_tables(scope: _Scope, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
    half = scope.config.head_size // 2
    frequencies = np.tile(scope.config.rope_base ** (-np.arange(half) / half), 2)
    column = scope.op("Unsqueeze", positions, scope.constant("axes", [1, 3]))
    column = scope.op("Cast", column, attributes={"to": ir.DataType.FLOAT})
    angles = scope.op("Mul", column, scope.constant("inv_freq", frequencies, np.float32))
    return scope.op("Cos", angles), scope.op("Sin", angles)


def _additive_mask(scope: _Scope, attention_mask: ir.Value, positions: ir.Value) -> ir.Value:
    query = scope.op("Unsqueeze", positions, scope.constant("query_axes", [1, 3]))
    key_axes = scope.constant("key_axes", [1, 2])
    key = scope.op("Unsqueeze", positions, key_axes, label="Unsqueeze_1")
    real = scope.op("Cast", attention_mask, attributes={"to": ir.DataType.BOOL})
    real = scope.op("Unsqueeze", real, key_axes, label="Unsqueeze_2")
    seen = scope.op("And", scope.op("GreaterOrEqual", query, key), real)
    hidden = scope.constant("hidden", np.finfo(np.float32).min, np.float32)
    return scope.op("Where", seen, scope.constant("visible", 0, np.float32), hidden)


def _attention(scope: _Scope, x: ir.Value, shared: _Shared) -> ir.Value:
    config = scope.config
    q, k, v = (
        _heads(scope.inner(name), scope.linear(name, x), count)
        for name, count in (("q_proj", config.heads), ("k_proj", config.kv_heads), ("v_proj", config.kv_heads))
    )
    q, k = _rotated(scope.inner("q_rotary"), q, shared), _rotated(scope.inner("k_rotary"), k, shared)
    k, v = _repeated(scope.inner("k_repeat"), k), _repeated(scope.inner("v_repeat"), v)
    rotated_half = scope.op("Transpose", k, attributes={"perm": [0, 1, 3, 2]})
    scale = scope.constant("scale", 1 / math.sqrt(config.head_size), np.float32)
    scores = scope.op("Mul", scope.op("MatMul", q, rotated_half), scale)
    shares = scope.op("Softmax", scope.op("Add", scores, shared.mask), attributes={"axis": -1})
    mixed = scope.op("MatMul", shares, v, label="MatMul_1")
    mixed = scope.op("Transpose", mixed, label="Transpose_1", attributes={"perm": [0, 2, 1, 3]})
    shape = scope.constant("shape", [0, 0, config.heads * config.head_size])
    return scope.linear("o_proj", scope.op("Reshape", mixed, shape))


def _heads(scope: _Scope, x: ir.Value, count: int) -> ir.Value:
    shape = scope.constant("shape", [0, 0, count, scope.config.head_size])
    return scope.op("Transpose", scope.op("Reshape", x, shape), attributes={"perm": [0, 2, 1, 3]})


def _rotated(scope: _Scope, x: ir.Value, shared: _Shared) -> ir.Value:
    size = scope.config.head_size
    start, middle, end = (scope.constant(f"at_{at}", [at]) for at in (0, size // 2, size))
    axis = scope.constant("axis", [-1])
    first = scope.op("Slice", x, start, middle, axis)
    second = scope.op("Neg", scope.op("Slice", x, middle, end, axis, label="Slice_1"))
    rotated_half = scope.op("Concat", second, first, attributes={"axis": -1})
    return scope.op("Add", scope.op("Mul", x, shared.cos), scope.op("Mul", rotated_half, shared.sin, label="Mul_1"))


def _repeated(scope: _Scope, x: ir.Value) -> ir.Value:
    """[batch, kv_heads, ...] to [batch, heads, ...]."""
    config = scope.config
    x = scope.op("Unsqueeze", x, scope.constant("axes", [2]))
    x = scope.op("Expand", x, scope.constant("groups", [1, 1, config.heads // config.kv_heads, 1, 1]))
    return scope.op("Reshape", x, scope.constant("shape", [0, config.heads, -1, config.head_size]))


def _feed_forward(scope: _Scope, x: ir.Value) -> ir.Value:
    gate = scope.linear("gate_proj", x)
    silu = scope.inner("act_fn").op("Mul", gate, scope.inner("act_fn").op("Sigmoid", gate))
    return scope.linear("down_proj", scope.op("Mul", silu, scope.linear("up_proj", x)))
