"""Chains of nodes between a constant and a product, drawn at random: folded, they are what onnxruntime computes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from jaxq.graph.normalize.views import View, restore_views
from jaxq.graph.prepare import prepare
from tests.support.running import run

TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}


@dataclass
class Chain:
    """Nodes so far, the constants they read, and the shape and type of the last value."""

    shape: tuple[int, ...]
    dtype: np.dtype
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def last(self) -> str:
        return f"v{len(self.nodes)}"

    def add(
        self, op: str, *numbers: list[int] | int, outputs: int = 1, take: int = 0, **attributes: int | Sequence[int]
    ) -> None:
        names = []
        for i, n in enumerate(numbers):
            names.append(f"{self.last}_{i}")
            self.constants[names[-1]] = np.array(n, np.int64)
        outs = [f"v{len(self.nodes) + 1}" if i == take else f"v{len(self.nodes)}_rest{i}" for i in range(outputs)]
        made = helper.make_node(op, [self.last, *names], outs, f"n{len(self.nodes)}")
        made.attribute.extend(helper.make_attribute(name, number) for name, number in attributes.items())
        self.nodes.append(made)


def transpose(draw: st.DrawFn, chain: Chain) -> None:
    perm = draw(st.permutations(range(len(chain.shape))))
    chain.add("Transpose", perm=perm)
    chain.shape = tuple(chain.shape[i] for i in perm)


def reshape(draw: st.DrawFn, chain: Chain) -> None:
    """Two neighbours joined, or one divided; a dimension may be given as 0 or -1."""
    shape = list(chain.shape)
    i = draw(st.integers(0, len(shape) - 1))
    if len(shape) > 2 and i:
        shape[i - 1 : i + 1] = [shape[i - 1] * shape[i]]
    else:
        divisors = [d for d in range(1, shape[i] + 1) if shape[i] % d == 0]
        d = draw(st.sampled_from(divisors))
        shape[i : i + 1] = [d, shape[i] // d]
    wanted = list(shape)
    for j, dim in enumerate(shape):
        if j < len(chain.shape) and dim == chain.shape[j] and draw(st.booleans()):
            wanted[j] = 0
    if draw(st.booleans()):
        wanted[draw(st.integers(0, len(shape) - 1))] = -1
    chain.add("Reshape", wanted)
    chain.shape = tuple(shape)


def unsqueeze(draw: st.DrawFn, chain: Chain) -> None:
    axis = draw(st.integers(-len(chain.shape) - 1, len(chain.shape)))
    chain.add("Unsqueeze", [axis])
    at = axis % (len(chain.shape) + 1)
    chain.shape = (*chain.shape[:at], 1, *chain.shape[at:])


def squeeze(draw: st.DrawFn, chain: Chain) -> None:
    ones = [i for i, d in enumerate(chain.shape) if d == 1]
    if not ones or len(chain.shape) < 3:
        return
    axis = draw(st.sampled_from(ones))
    chain.add("Squeeze", [axis - draw(st.sampled_from([0, len(chain.shape)]))])
    chain.shape = (*chain.shape[:axis], *chain.shape[axis + 1 :])


def flatten(draw: st.DrawFn, chain: Chain) -> None:
    axis = draw(st.integers(-len(chain.shape), len(chain.shape)))
    chain.add("Flatten", axis=axis)
    at = axis if axis >= 0 else axis + len(chain.shape)
    chain.shape = (math.prod(chain.shape[:at]), math.prod(chain.shape[at:]))


def pick(draw: st.DrawFn, chain: Chain) -> None:
    if len(chain.shape) > 2:
        chain.add("Gather", draw(st.integers(-chain.shape[0], chain.shape[0] - 1)), axis=0)
        chain.shape = chain.shape[1:]


def cut(draw: st.DrawFn, chain: Chain) -> None:
    axis = draw(st.integers(0, len(chain.shape) - 1))
    dim = chain.shape[axis]
    start = draw(st.integers(0, dim - 1))
    stop, step = draw(st.integers(start + 1, dim)), draw(st.integers(1, 3))
    open_end = stop == dim and draw(st.booleans())
    signed = start - dim if draw(st.booleans()) else start
    chain.add("Slice", [signed], [(1 << 63) - 1 if open_end else stop], [axis], [step])
    chain.shape = (*chain.shape[:axis], len(range(start, stop, step)), *chain.shape[axis + 1 :])


def split(draw: st.DrawFn, chain: Chain) -> None:
    axis = draw(st.integers(0, len(chain.shape) - 1))
    dim = chain.shape[axis]
    if dim < 2:
        return
    parts, take = 2, draw(st.integers(0, 1))
    if draw(st.booleans()):
        first = draw(st.integers(1, dim - 1))
        chain.add("Split", [first, dim - first], outputs=parts, take=take, axis=axis)
    else:
        first = -(-dim // 2)
        chain.add("Split", outputs=parts, take=take, axis=axis, num_outputs=2)
    size = (first, dim - first)[take]
    chain.shape = (*chain.shape[:axis], size, *chain.shape[axis + 1 :])


def cast(draw: st.DrawFn, chain: Chain) -> None:
    chain.dtype = draw(st.sampled_from(list(TYPES)))
    chain.add("Cast", to=TYPES[chain.dtype])


def identity(draw: st.DrawFn, chain: Chain) -> None:
    chain.add("Identity")


KINDS = (transpose, reshape, unsqueeze, squeeze, flatten, pick, cut, split, cast, identity)


@st.composite
def chains(draw: st.DrawFn) -> tuple[np.ndarray, Chain]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    dtype = draw(st.sampled_from(list(TYPES)))
    source = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape).astype(dtype)
    chain = Chain(shape, dtype)
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6)):
        kind(draw, chain)
        event(kind.__name__)
    chain.dtype = np.dtype(np.float32)
    chain.add("Cast", to=TensorProto.FLOAT)
    return source, chain


def model_of(source: np.ndarray, chain: Chain) -> onnx.ModelProto:
    product = helper.make_node("MatMul", ["x", chain.last], ["y"], "product")
    ins = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, chain.shape[-2]])]
    outs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*chain.shape[:-2], 2, chain.shape[-1]])]
    tensors = [numpy_helper.from_array(array, name) for name, array in {"v0": source, **chain.constants}.items()]
    graph = helper.make_graph([*chain.nodes, product], "chain", ins, outs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@given(chains())
@settings(max_examples=max(150, settings().max_examples))
def test_a_chain_is_what_onnxruntime_computes(drawn):
    source, chain = drawn
    proto = model_of(source, chain)
    x = {"x": np.random.default_rng(1).standard_normal((2, chain.shape[-2])).astype(np.float32)}
    expected, y = run(proto, x, chain.last, "y", optimize=False)
    model = ir.from_proto(proto)
    prepare(model)
    (product,) = model.graph
    weight = product.inputs[1]
    assert weight is not None and isinstance(weight.const_value, View)
    np.testing.assert_array_equal(weight.const_value.numpy(), expected)
    assert tuple(weight.const_value.shape.numpy()) == expected.shape
    assert list(model.graph.initializers) == [weight.name]
    np.testing.assert_allclose(run(ir.to_proto(model), x, optimize=False)[0], y, rtol=1e-5, atol=1e-5)
    restore_views(model)
    restored = ir.to_proto(model)
    onnx.checker.check_model(restored, full_check=True)
    assert numpy_helper.to_array(next(t for t in restored.graph.initializer if t.name == "v0")).dtype == source.dtype
    np.testing.assert_allclose(run(restored, x, optimize=False)[0], y, rtol=1e-5, atol=1e-5)
