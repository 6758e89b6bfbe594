from .api import evaluate, quantize
from .errors import JaxqError
from .formats import IntegerFormat, MxFormat, Nvfp4Format, Quantized, Scales
from .formats.fake_quant import fake_quant
from .formats.registry import make_format
from .methods.awq import awq_scale, search_clip, search_scales, search_shared_scales, weight_magnitude
from .methods.block_scales import search_block_scales
from .methods.gptq import damp, gptq_round
from .methods.grids import alpha_grid, ratio_grid
from .numerics.float4 import decode_e2m1, encode_e2m1
from .numerics.integer import dq_tensor, find_scales, quant_tensor, rtn
from .numerics.moments import Moments, MomentSums, accumulate, finish, output_error, shrunk, zero_sums
from .numerics.packing import pack_int4, unpack_int4
from .version import __version__

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
    "evaluate",
    "fake_quant",
    "find_scales",
    "finish",
    "gptq_round",
    "make_format",
    "output_error",
    "pack_int4",
    "quant_tensor",
    "quantize",
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
