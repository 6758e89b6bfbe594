"""A second call with new values of the same shapes and types traces and compiles nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.formats.base import Quantized, Scales
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.microscaling import MxFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.formats.registry import WeightFormat
from jaxq.methods.awq import search_clip, search_scales, weight_magnitude
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.choose import Choice, choose
from jaxq.methods.gptq import gptq_round
from jaxq.methods.grids import alpha_grid, ratio_grid
from jaxq.methods.measure import measure
from jaxq.methods.registry import METHODS, ROUND_TO_NEAREST, MethodSpec
from jaxq.numerics.integer import dq_tensor, find_scales, quant_tensor, rtn
from jaxq.numerics.moments import Moments, accumulate, accumulate_in_place, finish, output_error, zero_sums
from jaxq.numerics.packing import pack_int4

C_IN, C_OUT, TOKENS = 40, 6, 32


def floats(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(0.1, 1, size=shape), jnp.float32)


def moments(seed: int) -> Moments:
    return Moments(floats(seed, C_IN, C_IN), floats(seed, C_IN), jnp.array(seed, jnp.int32))


def parts(seed: int, *formats: WeightFormat) -> list[tuple[jax.Array, WeightFormat]]:
    return [(floats(seed, C_IN, C_OUT), fmt) for fmt in formats or (IntegerFormat(16, full_range=True),)]


def choice(seed: int) -> Choice:
    q = jnp.asarray(np.random.default_rng(seed).integers(-8, 8, size=(C_IN, C_OUT)), jnp.int8)
    ratio = floats(seed, 3, C_OUT)
    return Choice(Quantized(q, floats(seed, 3, C_OUT), None), floats(seed, C_IN), jnp.float32(seed), ratio)


def spec(name: str) -> MethodSpec:
    """A new one each time: equal specs have to be one key."""
    return MethodSpec(name, IntegerFormat(16, full_range=True), alpha_step=0.25, clip_step=0.1)


# Each takes a seed, and gives a function with its arguments.
CALLS: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "find_scales": lambda i: (find_scales, floats(i, C_IN, C_OUT), 16, 0, 1 / i),
    "rtn": lambda i: (rtn, floats(i, C_IN, C_OUT), floats(i, 3, C_OUT), 16),
    "dq_tensor": lambda i: (dq_tensor, jnp.full((C_IN, C_OUT), i, jnp.int8), floats(i, 3, C_OUT), 16),
    "quant_tensor": lambda i: (quant_tensor, floats(i, C_IN, C_OUT), 16, 0, 1 / i, True),
    "pack_int4": lambda i: (pack_int4, jnp.full((C_IN, C_OUT), i, jnp.int8)),
    "accumulate": lambda i: (accumulate, zero_sums(C_IN), floats(i, TOKENS, C_IN), floats(i, TOKENS)),
    "accumulate_in_place": lambda i: (
        accumulate_in_place,
        *(zero_sums(C_IN), floats(i, TOKENS, C_IN), floats(i, TOKENS)),
    ),
    "finish": lambda i: (finish, accumulate(zero_sums(C_IN), floats(i, TOKENS, C_IN), floats(i, TOKENS))),
    "output_error": lambda i: (output_error, floats(i, C_IN, C_OUT), floats(i, C_IN, C_IN)),
    "weight_magnitude": lambda i: (weight_magnitude, floats(i, C_IN, C_OUT), 16),
    "search_scales": lambda i: (
        search_scales,
        *(floats(i, C_IN, C_OUT), moments(i), jnp.array(alpha_grid(0.25)) / i, IntegerFormat(16)),
    ),
    "search_clip": lambda i: (
        search_clip,
        *(floats(i, C_IN, C_OUT), floats(i, C_IN, C_IN), jnp.array(ratio_grid(0.5, 0.05)) / i, IntegerFormat(16)),
    ),
    "search_block_scales": lambda i: (
        search_block_scales,
        *(floats(i, C_IN, C_OUT), floats(i, C_IN, C_IN), IntegerFormat(16, full_range=True)),
    ),
    "gptq": lambda i: (
        gptq_round,
        *(floats(i, C_IN, C_OUT), floats(i, C_IN, C_IN), Scales(floats(i, 3, C_OUT)), IntegerFormat(16), 0.01 * i, 1),
    ),
    "round_to_nearest": lambda i: (choose, ROUND_TO_NEAREST, parts(i), None, spec("rtn")),
    "awq_full": lambda i: (choose, METHODS["awq_full"], parts(i), moments(i), spec("awq_full")),
    "awq_gptq": lambda i: (choose, METHODS["awq_gptq"], parts(i), moments(i), spec("awq_gptq")),
    "awq_full of two formats": lambda i: (
        choose,
        *(METHODS["awq_full"], parts(i, Nvfp4Format(), MxFormat("mxfp4")), moments(i), spec("awq_full")),
    ),
    "measure": lambda i: (measure, floats(i, C_IN, C_OUT), choice(i), moments(i), IntegerFormat(16, full_range=True)),
}


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of jax's tracing and compilation events, as they happen."""
    events: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        if event.startswith("/jax/core/compile/"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield events
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize("name", CALLS)
def test_new_values_compile_nothing(name, compilations):
    function, *args = CALLS[name](1)
    jax.block_until_ready(function(*args))
    function, *args = CALLS[name](2)
    before = len(compilations)
    jax.block_until_ready(function(*args))
    assert compilations[before:] == []


def test_compilations_are_seen(compilations):
    """A new shape, so that the test above could fail."""
    find_scales(jnp.ones((7, 11)), 16)
    assert compilations
