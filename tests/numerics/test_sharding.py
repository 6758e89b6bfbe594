"""Arrays on eight devices give what one device gives, over automatic and over explicit axes of a mesh.

Run as a program, with the kind of axes ("auto" or "explicit"), this file is the check.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxq
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.methods.awq import search_clip
from jaxq.methods.grids import ratio_grid
from jaxq.numerics.integer import quant_tensor
from jaxq.numerics.moments import accumulate, finish, output_error, zero_sums

C_IN, C_OUT, TOKENS = 40, 16, 64  # ragged in blocks of 16 and 32
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
FORMATS = [
    *(make_format(dtype, None if "fp" in dtype else 16) for dtype in ("int4", "uint4", "nvfp4", "mxfp4", "mxfp8")),
    make_format("int4", 16, full_range=True, scale_dtype="float8_e4m3fn"),
    make_format("int4", 5),  # a block for each device
    make_format("int4", -1),
]


def assert_same(got: object, want: object, rtol: float = 0.0) -> None:
    for pair in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = (np.asarray(x).astype(np.float32) for x in pair)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def calls_of(fmt: WeightFormat, h: jax.Array) -> dict[str, Callable[[jax.Array], Any]]:
    """Functions of a weight by name."""
    scales = fmt.plain_scales(jnp.ones((C_IN, C_OUT)))
    ratios = jnp.array(ratio_grid(0.8, 0.1))
    return {
        "round_trip": fmt.round_trip,
        "quantize": fmt.quantize,
        "fake_quant": lambda w: jaxq.fake_quant(w, fmt),
        "grad of fake_quant": jax.jit(jax.grad(lambda w: jnp.square(jaxq.fake_quant(w, fmt, scales)).sum())),
        "magnitude": lambda w: jaxq.weight_magnitude(w, fmt.block_size),
        "block scales": lambda w: jaxq.search_block_scales(w, h, fmt),
        "clip": lambda w: search_clip(w, h, ratios, fmt),
        "gptq": lambda w: jaxq.gptq_round(w, h, fmt.plain_scales(w), fmt, descent_passes=1),
    }


def check_moments(mesh: jax.sharding.Mesh) -> jax.Array:
    """Tokens on all devices; gives the second moment of one device."""
    rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("d",), (None, "d")))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(TOKENS, C_IN)), jnp.float32)
    keep = jnp.asarray(np.arange(TOKENS) % 5 > 0, jnp.float32)
    sums = accumulate(zero_sums(C_IN), x, keep)
    moments = finish(sums)
    for tokens in (rows, columns):
        spread = accumulate(zero_sums(C_IN), jax.device_put(x, tokens), keep)
        assert_same(finish(spread), moments, rtol=1e-6)
    spread = accumulate(zero_sums(C_IN), jax.device_put(x, rows), jax.device_put(keep, rows))
    assert len(spread.xx.sharding.device_set) == 8
    # A second batch, on sums that lie on all devices, and all of it in a user's own jit.
    twice = accumulate(spread, jax.device_put(x, rows), jax.device_put(keep, rows))
    assert_same(finish(twice).h, moments.h, rtol=1e-6)
    compiled = jax.jit(lambda x, keep: finish(accumulate(zero_sums(C_IN), x, keep)))
    assert_same(compiled(jax.device_put(x, rows), jax.device_put(keep, rows)), moments, rtol=1e-6)
    h = jax.device_put(moments.h, rows)
    shrunk = jaxq.shrunk(moments.h, jnp.array(51), 90.0)
    assert_same(jaxq.damp(jaxq.shrunk(h, moments.tokens, 90.0), 0.1), jaxq.damp(shrunk, 0.1))
    return moments.h


def main(kind: str) -> None:
    """Compare sharded and single-device results."""
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("d",), axis_types=(KINDS[kind],))
    rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("d",), (None, "d")))
    h = check_moments(mesh)
    w = jnp.asarray(np.random.default_rng(0).standard_t(3, size=(C_IN, C_OUT)), jnp.float32)

    shards = jax.device_put(w, columns)
    got = quant_tensor(shards, 16, use_zero_point=True)
    assert got[0].sharding.is_equivalent_to(columns, 2)
    assert_same(got, quant_tensor(w, 16, use_zero_point=True))

    ratios, fmt = jnp.array(ratio_grid(0.5, 0.1)), make_format("int4", 16)
    chosen = search_clip(shards, h, ratios, fmt)
    assert chosen.sharding.is_equivalent_to(columns, 2)
    assert len(np.unique(np.asarray(chosen))) > 2
    assert_same(chosen, search_clip(w, h, ratios, fmt))

    for sharding in (rows, columns):
        shards = jax.device_put(w, sharding)
        assert_same(output_error(shards, h), output_error(w, h), rtol=1e-6)
        assert_same(output_error(shards, jax.device_put(h, rows)), output_error(w, h), rtol=1e-6)
        codes = jaxq.quant_tensor(shards, 16)[0]
        assert_same(jaxq.unpack_int4(jaxq.pack_int4(codes), w.shape, True), codes)
        for fmt in FORMATS:
            for name, call in calls_of(fmt, h).items():
                if name not in ("round_trip", "fake_quant") and fmt is not FORMATS[0]:
                    continue  # the other functions take seconds to compile, and differ by format in the codes only
                # The sum over a sharded axis has another order: GPTQ's values and the searches are exact all the same.
                assert_same(call(shards), call(w), rtol=1e-6)
                if name in ("quantize", "gptq"):
                    assert_same(jax.jit(call)(shards), call(w), rtol=1e-6)
        fmt = FORMATS[0]
        on_devices, scales = fmt.plain_scales(shards), fmt.plain_scales(w)
        assert_same(
            jaxq.gptq_round(shards, jax.device_put(h, rows), on_devices, fmt),
            jaxq.gptq_round(w, h, scales, fmt),
            rtol=1e-6,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices(kind):
    root = Path(jaxq.__file__).parent.parent
    flags = "--xla_force_host_platform_device_count=8"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, __file__, kind], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main(sys.argv[1])
