"""Quantization methods and their searches: from weights and second moments to codes and scales."""

from jaxq.methods.allocation import Option, allocate
from jaxq.methods.awq import search_clip, search_scales, search_shared_scales
from jaxq.methods.block_scales import search_block_scales
from jaxq.methods.gptq import damp, gptq_round
from jaxq.methods.grids import IDENTITY
from jaxq.methods.registry import METHODS, ROUND_TO_NEAREST, Method, MethodSpec, find_method
from jaxq.methods.targets import corrected_target

__all__ = [
    "IDENTITY",
    "METHODS",
    "ROUND_TO_NEAREST",
    "Method",
    "MethodSpec",
    "Option",
    "allocate",
    "corrected_target",
    "damp",
    "find_method",
    "gptq_round",
    "search_block_scales",
    "search_clip",
    "search_scales",
    "search_shared_scales",
]  # fmt: skip
