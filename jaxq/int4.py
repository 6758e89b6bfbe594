"""The names of NVIDIA ModelOpt's ``int4`` page, on numpy and JAX arrays (see `jaxq.quant_utils` for which gives which).

The page's functions that `jaxq.quant_utils` has too have its fuller parameters here, and take the page's shorter calls:
``find_scales(w, 128, 0.5, True)`` has a float third, so that is alpha; ``dq_tensor(q, s, 128, zp)`` an array fourth, so
that is the zero point. Importing this module loads neither onnxruntime nor Hydra.
"""

from jaxq.modelopt.awq_scales import get_act_scale, get_scale, get_weight_scale
from jaxq.modelopt.helpers import AWQClipHelper, AWQLiteHelper
from jaxq.modelopt.int4_integers import dq_tensor, find_scales, quant_tensor, rtn
from jaxq.modelopt.models import quantize, quantize_rtn
from jaxq.modelopt.packs import (
    get_act_to_weight_map_and_act_to_wa_pack_map,
    get_x_w_mean_for_subgraph,
    run_awq_scale_search_per_node,
    run_awq_scale_search_per_subgraph,
)

__all__ = [
    "AWQClipHelper",
    "AWQLiteHelper",
    "dq_tensor",
    "find_scales",
    "get_act_scale",
    "get_act_to_weight_map_and_act_to_wa_pack_map",
    "get_scale",
    "get_weight_scale",
    "get_x_w_mean_for_subgraph",
    "quant_tensor",
    "quantize",
    "quantize_rtn",
    "rtn",
    "run_awq_scale_search_per_node",
    "run_awq_scale_search_per_subgraph",
]
