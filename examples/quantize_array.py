"""Shows an array with 4-bit codes, a scale for each block of 128 rows, and the error that rounding leaves.
Prints: 4.25 bits a weight, relative error 0.117"""

import jax
import jax.numpy as jnp

import jaxq

w = jax.random.normal(jax.random.key(0), (4096, 256))  # [c_in, c_out]
q, s, _ = jaxq.quant_tensor(w, block_size=128)  # int8 codes [4096, 256], scales [32, 256], no zero points
w_hat = jaxq.dq_tensor(q, s, block_size=128)

packed = jaxq.pack_int4(q)  # two codes a byte, as ONNX files store them
bits = 8 * (packed.nbytes + s.nbytes) / w.size
error = jnp.linalg.norm(w_hat - w) / jnp.linalg.norm(w)
print(f"{bits:.2f} bits a weight, relative error {error:.3f}")
