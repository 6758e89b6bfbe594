"""Tokens or output columns on eight devices give what one device gives. Run as a program, this file is the check."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxq
from jaxq.formats.integers import IntegerFormat
from jaxq.methods.awq import ratio_grid, search_clip
from jaxq.numerics.integer import quant_tensor
from jaxq.numerics.moments import accumulate, finish, output_error, zero_sums

C_IN, C_OUT, TOKENS = 40, 16, 64


def assert_same(got: object, want: object, rtol: float = 0.0) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=rtol)


def main() -> None:
    """Compare sharded and single-device results."""
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()), ("d",))
    rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("d",), (None, "d")))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(TOKENS, C_IN)), jnp.float32)
    w = jnp.asarray(rng.standard_t(3, size=(C_IN, C_OUT)), jnp.float32)
    keep = jnp.asarray(np.arange(TOKENS) % 5 > 0, jnp.float32)

    moments = finish(accumulate(zero_sums(C_IN), x, keep))
    spread = accumulate(zero_sums(C_IN), jax.device_put(x, rows), jax.device_put(keep, rows))
    assert len(spread.xx.sharding.device_set) == 8
    assert_same(finish(spread), moments, rtol=1e-6)

    shards = jax.device_put(w, columns)
    got = quant_tensor(shards, 16, use_zero_point=True)
    assert got[0].sharding.is_equivalent_to(columns, 2)
    assert_same(got, quant_tensor(w, 16, use_zero_point=True))

    h, ratios = moments.h, jnp.array(ratio_grid(0.5, 0.1))
    chosen = search_clip(shards, h, ratios, IntegerFormat(16))
    assert chosen.sharding.is_equivalent_to(columns, 2)
    assert len(np.unique(np.asarray(chosen))) > 2
    assert_same(chosen, search_clip(w, h, ratios, IntegerFormat(16)))
    assert_same(output_error(shards, h), output_error(w, h), rtol=1e-6)


def test_eight_devices():
    root = Path(jaxq.__file__).parent.parent
    flags = "--xla_force_host_platform_device_count=8"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
