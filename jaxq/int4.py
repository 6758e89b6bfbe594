"""The functions and classes of NVIDIA ModelOpt's ``int4`` page, on numpy and JAX arrays and on ONNX models.

The arrays that go in decide which come out, as in `jaxq.quant_utils`. ``find_scales``, ``rtn``, ``dq_tensor`` and
``quant_tensor`` have the fuller parameters of that module, and also take the shorter calls of this page:
``find_scales(w, 128, 0.5, True)`` gives alpha after the block size, ``dq_tensor(q, s, 128, zp)`` the zero points.
Importing this module loads neither onnxruntime nor Hydra.
"""

from jaxq.modelopt.awq_helpers import AWQClipHelper, AWQLiteHelper
from jaxq.modelopt.awq_scales import get_act_scale, get_scale, get_weight_scale
from jaxq.modelopt.precision import CLIP_MIN, INT4_MAX, INT4_MIN, UINT4_MAX, UINT4_MIN
from jaxq.modelopt.quantize import quantize, quantize_rtn
from jaxq.modelopt.search_per_node import run_awq_scale_search_per_node
from jaxq.modelopt.search_per_subgraph import run_awq_scale_search_per_subgraph
from jaxq.modelopt.short_calls import dq_tensor, find_scales, quant_tensor, rtn
from jaxq.modelopt.wa_packs import get_act_to_weight_map_and_act_to_wa_pack_map, get_x_w_mean_for_subgraph

NUM_BITS = 4
INT4_SCALE = 7.0

__all__ = [
    "CLIP_MIN",
    "INT4_MAX",
    "INT4_MIN",
    "INT4_SCALE",
    "NUM_BITS",
    "UINT4_MAX",
    "UINT4_MIN",
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
