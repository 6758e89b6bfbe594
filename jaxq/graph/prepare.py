"""Bring a model to the shape in which its weights are found."""

import onnx_ir as ir
import onnx_ir.passes.common as passes

from jaxq.errors import JaxqError
from jaxq.graph.edit import Names, rename_doubles
from jaxq.graph.normalize.functions import inline_functions
from jaxq.graph.normalize.gemm import simplify_gemms
from jaxq.graph.normalize.views import fold_views, remove_identities


def prepare(model: ir.Model) -> None:
    """Brings a model, in place, to the shape that the other functions expect; its results stay the same.

    Functions with weights are written out. Constants become initializers, initializers are no longer inputs
    (onnxruntime fuses neither otherwise; a caller could have given such an input another value), nodes and values have
    names, and nodes stand in topological order. See `jaxq.graph.prepare.normalize` for the rest.

    Raises:
        JaxqError: the graph has a cycle, or names that cannot be told apart.
    """
    tidy(model)
    normalize(model)


def tidy(model: ir.Model) -> None:
    """The part of `prepare` that leaves weights as the file has them; functions with weights are written out.

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
