"""Arithmetic on arrays: blocks, scales and codes of each kind, packed bytes, second moments. Imports JAX only."""

from jaxq.numerics.blocks import count_blocks, join, max_magnitude, resolve_block_size, split, spread
from jaxq.numerics.drift import Drift, drift_product
from jaxq.numerics.float4 import decode_e2m1, encode_e2m1
from jaxq.numerics.integer import dq_tensor, find_full_range_scales, find_scales, quant_tensor, rtn
from jaxq.numerics.moments import (
    Moments,
    MomentsOf,
    MomentSums,
    accumulate,
    finish,
    mean_moments,
    output_error,
    shrunk,
    zero_sums,
)
from jaxq.numerics.packing import pack_int4, unpack_int4

__all__ = [
    "Drift", "MomentSums", "Moments", "MomentsOf", "accumulate", "count_blocks", "decode_e2m1", "dq_tensor",
    "drift_product", "encode_e2m1", "find_full_range_scales", "find_scales", "finish", "join",
    "max_magnitude", "mean_moments", "output_error", "pack_int4", "quant_tensor", "resolve_block_size", "rtn",
    "shrunk", "split", "spread", "unpack_int4", "zero_sums",
]  # fmt: skip
