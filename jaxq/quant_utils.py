"""The functions of NVIDIA ModelOpt's ``quant_utils`` page, on numpy and JAX arrays.

numpy arrays and lists give numpy arrays, which can be written to. JAX arrays give JAX arrays, also inside
the caller's `jax.jit` and `jax.vmap`. float64 is computed in float32, as JAX does.
"""

from jaxq.modelopt.integers import dq_tensor, find_scales, quant_tensor, rtn
from jaxq.modelopt.mx_exponents import compute_e8m0, get_amax
from jaxq.modelopt.nvfp4 import get_weights_scaling_factor, get_weights_scaling_factor_2, quantize
from jaxq.modelopt.packing import pack_float32_to_4bit_cpp_based, pack_float32_to_4bit_optimized, pack_weights_to_int4
from jaxq.modelopt.precision import (
    CLIP_MIN,
    INT4_MAX,
    INT4_MIN,
    UINT4_MAX,
    UINT4_MIN,
    get_layer_axis,
    get_layer_block_size,
    get_num_bits,
    reshape_scales_for_per_channel_nodes,
    update_block_size,
)

__all__ = [
    "CLIP_MIN",
    "INT4_MAX",
    "INT4_MIN",
    "UINT4_MAX",
    "UINT4_MIN",
    "compute_e8m0",
    "dq_tensor",
    "find_scales",
    "get_amax",
    "get_layer_axis",
    "get_layer_block_size",
    "get_num_bits",
    "get_weights_scaling_factor",
    "get_weights_scaling_factor_2",
    "pack_float32_to_4bit_cpp_based",
    "pack_float32_to_4bit_optimized",
    "pack_weights_to_int4",
    "quant_tensor",
    "quantize",
    "reshape_scales_for_per_channel_nodes",
    "rtn",
    "update_block_size",
]
