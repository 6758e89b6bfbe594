"""`get_scale` of shards of a weight's columns is the scale of the whole weight; run as a program, on eight devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import jaxq
from jaxq.int4 import get_act_scale, get_scale, get_weight_scale
from jaxq.modelopt.awq_scales import TP_AXIS

C_IN, C_OUT, SHARDS = 24, 32, 8


def arrays() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Activations, a weight, and its scale."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, C_IN)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(C_IN, C_OUT)), jnp.float32)
    return x, w, jnp.asarray(get_scale(get_act_scale(x), get_weight_scale(w, 8), 0.5))


def shard_scale(x: jax.Array, w: jax.Array) -> jax.Array:
    """The scale that a shard computes."""
    return jnp.asarray(get_scale(get_act_scale(x), get_weight_scale(w, 8), 0.5, reduce_across_tp=True))


def test_vmap() -> None:
    x, w, want = arrays()
    shards = jnp.stack(jnp.split(w, SHARDS, axis=1))
    got = jax.vmap(shard_scale, in_axes=(None, 0), axis_name=TP_AXIS)(x, shards)
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-6)
    alone = get_scale(get_act_scale(x), get_weight_scale(shards[0], 8), 0.5)
    assert not np.allclose(alone, want, rtol=1e-3)


def main() -> None:
    """The same on eight devices."""
    assert jax.device_count() == SHARDS
    x, w, want = arrays()
    mesh = Mesh(np.array(jax.devices()), (TP_AXIS,))
    specs = (PartitionSpec(), PartitionSpec(None, TP_AXIS))
    got = jax.jit(jax.shard_map(shard_scale, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))(x, w)
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-6)


def test_eight_devices() -> None:
    root = Path(jaxq.__file__).parent.parent
    flags = f"--xla_force_host_platform_device_count={SHARDS}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
