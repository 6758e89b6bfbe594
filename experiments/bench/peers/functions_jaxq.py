"""jaxq's array functions, for functions.py: on JAX arrays, and as a caller with numpy arrays sees them."""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from functions_serve import Call, serve, weight

from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.numerics.float4 import NVFP4_BLOCK
from jaxq.numerics.integer import dq_tensor, find_scales, quant_tensor, rtn
from jaxq.numerics.packing import pack_int4


def quantize_and_pack(w: jax.Array, block_size: int) -> tuple[jax.Array, jax.Array]:
    """Bytes and scales."""
    q, s, _ = quant_tensor(w, block_size)
    return pack_int4(q), s


def nvfp4(w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Bytes and the two scales."""
    found = Nvfp4Format().quantize(w)
    return pack_int4(found.q), found.s, found.s2


def calls_of(name: str, function: Callable[..., Any], *args: Any) -> list[Call]:
    """On JAX arrays, then on numpy arrays, of which JAX makes its own."""
    memory = jax.jit(function).lower(*args).compile().memory_analysis()
    assert memory is not None
    facts = {"temporary_bytes": memory.temp_size_in_bytes, "output_bytes": memory.output_size_in_bytes}
    given = [np.array(a) for a in args]
    return [
        Call(name, "jax", lambda: jax.block_until_ready(function(*args)), facts=facts),
        Call(name, "numpy", lambda: jax.tree.map(np.asarray, function(*given))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--block-size", type=int, required=True)
    args = parser.parse_args()
    block, w = args.block_size, jnp.asarray(weight(args.size))
    calls: list[Call] = []
    for axis in (0, 1):
        q, s, _ = quant_tensor(w, block, axis)
        calls += calls_of(f"find_scales, axis {axis}", partial(find_scales, block_size=block, quantize_axis=axis), w)
        calls += calls_of(f"rtn, axis {axis}", partial(rtn, block_size=block, quantize_axis=axis), w, s)
        calls += calls_of(f"dq_tensor, axis {axis}", partial(dq_tensor, block_size=block, quantize_axis=axis), q, s)
        calls += calls_of(f"quant_tensor, axis {axis}", partial(quant_tensor, block_size=block, quantize_axis=axis), w)
    zero = partial(quant_tensor, block_size=block, use_zero_point=True)
    calls += calls_of("quant_tensor, zero point", zero, w)
    calls += calls_of("pack", pack_int4, quant_tensor(w, block)[0])
    calls += calls_of("quant_tensor + pack", partial(quantize_and_pack, block_size=block), w)
    calls += calls_of(f"nvfp4, block {NVFP4_BLOCK}", nvfp4, w)
    jitted = jax.jit(nvfp4)
    calls.append(Call(f"nvfp4, block {NVFP4_BLOCK}", "one jit", lambda: jax.block_until_ready(jitted(w))))
    serve(calls, {name: version(name) for name in ("jaxq", "jax", "jaxlib", "numpy")})


if __name__ == "__main__":
    main()
