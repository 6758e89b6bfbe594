"""jaxq: 4-bit weights for ONNX models, chosen from the second moments of one forward pass.

The functions here work on arrays; `jaxq.pipeline.quantize_model` works on files; ``python -m jaxq.run`` is the
experiment harness. Importing this package loads neither Hydra nor onnxruntime.
"""

from jaxq.errors import JaxqError
from jaxq.formats import IntegerFormat, MxFormat, Nvfp4Format, Quantized, Scales
from jaxq.formats.registry import make_format
from jaxq.methods.awq import (
    alpha_grid,
    awq_scale,
    ratio_grid,
    search_clip,
    search_scales,
    search_shared_scales,
    weight_magnitude,
)
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.gptq import damp, gptq_round
from jaxq.numerics.float4 import decode_e2m1, encode_e2m1
from jaxq.numerics.integer import dq_tensor, find_scales, quant_tensor, rtn
from jaxq.numerics.moments import Moments, MomentSums, accumulate, finish, output_error, shrunk, zero_sums
from jaxq.numerics.packing import pack_int4, unpack_int4
from jaxq.version import __version__

__all__ = [
    "IntegerFormat",
    "JaxqError",
    "MomentSums",
    "Moments",
    "MxFormat",
    "Nvfp4Format",
    "Quantized",
    "Scales",
    "__version__",
    "accumulate",
    "alpha_grid",
    "awq_scale",
    "damp",
    "decode_e2m1",
    "dq_tensor",
    "encode_e2m1",
    "find_scales",
    "finish",
    "gptq_round",
    "make_format",
    "output_error",
    "pack_int4",
    "quant_tensor",
    "ratio_grid",
    "rtn",
    "search_block_scales",
    "search_clip",
    "search_scales",
    "search_shared_scales",
    "shrunk",
    "unpack_int4",
    "weight_magnitude",
    "zero_sums",
]
