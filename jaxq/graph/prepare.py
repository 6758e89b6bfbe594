"""Prepare a model so that its weights can be found: products read initializers, and everything has a name."""

import onnx_ir as ir
import onnx_ir.passes.common as passes

from jaxq.errors import JaxqError
from jaxq.graph.edit import Names, rename_doubles
from jaxq.graph.normalize.functions import inline_functions
from jaxq.graph.normalize.gemm import simplify_gemms
from jaxq.graph.normalize.views import fold_views, remove_identities


def prepare(model: ir.Model) -> None:
    """Prepares a model, in place, as the other functions of `jaxq.graph` expect it; its outputs stay the same.

    Functions with weights are written out. Constants become initializers, initializers are no longer inputs
    (onnxruntime fuses no others; a caller can no longer feed such an input), nodes and values have
    names, and nodes stand in topological order. `normalize` does the rest.

    Raises:
        JaxqError: the graph has a cycle, or names that are not unique.
    """
    tidy(model)
    normalize(model)


def tidy(model: ir.Model) -> None:
    """The part of `prepare` that keeps weights as the file stores them; functions with weights are written out.

    Raises:
        JaxqError: as in `prepare`.
    """
    inline_functions(model)
    for step in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=2),
        passes.RemoveInitializersFromInputsPass(),
        passes.NameFixPass(),
        passes.TopologicalSortPass(),
    ):
        try:
            step(model)
        except (ValueError, RuntimeError) as error:
            raise JaxqError(f"the model's graph is not valid: {type(step).__name__} says {error}") from error
    rename_doubles(model)


def normalize(model: ir.Model) -> None:
    """Makes products read their weights from initializers, in place; the model's outputs stay the same.

    Nodes between an initializer and a MatMul, Gemm or Conv (Transpose, Reshape, Squeeze, Unsqueeze, Flatten, Cast
    between float types, Slice, Split, Gather of one entry) are replaced by initializers that are computed when they
    are read. A tensor that other nodes read too, such as a table of Gather, stays as it is.

    Args:
        model: With constants as initializers that are no inputs, and with names. No weight is read.
    """
    remove_identities(model)
    names = Names(model)
    fold_views(model, names)
    simplify_gemms(model, names)
