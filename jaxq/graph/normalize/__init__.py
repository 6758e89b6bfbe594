"""Rewrites that make weights visible: functions with weights, views of weights and unusual Gemm nodes are replaced."""

from jaxq.graph.normalize.functions import constants_in_functions, inline_functions
from jaxq.graph.normalize.gemm import simplify_gemms
from jaxq.graph.normalize.ties import restore_ties, share_copies, share_transposed
from jaxq.graph.normalize.views import View, fold_views, own_mapping, remove_identities, restore_views

__all__ = [
    "View",
    "constants_in_functions",
    "fold_views",
    "inline_functions",
    "own_mapping",
    "remove_identities",
    "restore_ties",
    "restore_views",
    "share_copies",
    "share_transposed",
    "simplify_gemms",
]  # fmt: skip
