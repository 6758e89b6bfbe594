"""Steps that bring any graph to the shape in which its weights are found: functions, views and Gemm written out."""

from jaxq.graph.normalize.functions import inline_functions, left_functions
from jaxq.graph.normalize.gemm import simplify_gemms
from jaxq.graph.normalize.views import View, fold_views, own_mapping, remove_identities, restore_views

__all__ = [
    "View", "fold_views", "inline_functions", "left_functions", "own_mapping", "remove_identities",
    "restore_views", "simplify_gemms",
]  # fmt: skip
