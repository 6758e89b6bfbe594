"""Any ONNX graph in the plain shape in which `jaxq.graph` finds its weights: functions, views and Gemm written out."""

import onnx_ir as ir

from jaxq.plain.functions import inline_functions, left_functions
from jaxq.plain.gemm import simplify_gemms
from jaxq.plain.naming import Names
from jaxq.plain.views import View, fold_views, own_mapping, remove_identities, restore_views

__all__ = ["View", "inline_functions", "left_functions", "make_plain", "own_mapping", "restore_views"]


def make_plain(model: ir.Model) -> None:
    """Lets products read their weights as initializers, in place; the model's results stay the same.

    What lies between an initializer and a MatMul, Gemm or Conv (Transpose, Reshape, Squeeze, Unsqueeze, Flatten, Cast
    between float types, Slice, Split, Gather of one entry) is folded into initializers that are computed when they are
    read. A tensor that something else reads too, such as a table that Gather reads, is left as it is.

    Args:
        model: With constants as initializers that are no inputs, and with names. No weight is read.
    """
    remove_identities(model)
    names = Names(model)
    fold_views(model, names)
    simplify_gemms(model, names)
