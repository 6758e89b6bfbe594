"""Write quantized weights into a model, and divide the activations of scaled weights."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from jaxq.forms.fold import Fold, divide_vectors, divided_vectors, find_fold, insert_division
from jaxq.forms.form import Form
from jaxq.forms.nodes import is_shared
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.edit import rename_doubles
from jaxq.graph.normalize.ties import restore_ties
from jaxq.graph.normalize.views import restore_views
from jaxq.graph.sites import Site
from jaxq.search.result import GroupResult, Layer


def write_weights(model: ir.Model, results: Sequence[GroupResult], form: Form) -> tuple[Layer, ...]:
    """Replaces float weights by quantized ones, in place. Arrays are read only when the model is saved.

    Returns:
        The results' layers, with their bytes in the file and the place of the activation's division.
    """
    stored = {site: w for result in results for site, w in zip(result.group.sites, result.weights, strict=True)}
    folds = {result: _find_fold(result, stored) for result in results if result.scaled}
    divisors = {weight: result.s.ravel() for result, fold in folds.items() if fold for weight in fold.weights}
    if form.domain:
        model.opset_imports.setdefault(form.domain, 1)
    layers, graphs = [], list(model.graphs())
    for result in results:
        where = _divide_activation(model.graph, result, folds[result]) if result.scaled else ""
        for site, weight, layer in zip(result.group.sites, result.weights, result.layers, strict=True):
            divisor = divisors.get(site.weight)
            before = {name for graph in graphs for name in graph.initializers}
            form.write(model.graph, site, weight if divisor is None else weight.divide_columns(divisor))
            nbytes = _new_bytes(graphs, before) if form.scaled else weight.nbytes
            layers.append(replace(layer, fold=where, nbytes=nbytes))
    restore_ties(model)
    restore_views(model)
    rename_doubles(model)
    return tuple(layers)


def _new_bytes(graphs: Sequence[ir.Graph], before: Collection[str]) -> int:
    """Bytes of the new initializers, without those that weights share."""
    initializers = (item for graph in graphs for item in graph.initializers.items())
    new = (v.const_value for name, v in initializers if name not in before and not is_shared(name))
    return sum(tensor.nbytes for tensor in new if tensor is not None)


def _find_fold(result: GroupResult, stored: Mapping[Site, StoredWeight]) -> Fold | None:
    fold = find_fold(result.group, stored)
    weights = {site.weight: weight for site, weight in stored.items()}
    if fold is None or not all(weights[w].can_divide_columns(result.s.ravel()) for w in fold.weights):
        return None
    return fold if all(np.isfinite(v).all() for v in divided_vectors(fold, result.s)) else None


def _divide_activation(graph: ir.Graph, result: GroupResult, fold: Fold | None) -> str:
    if fold is None:
        insert_division(graph, result.group, result.s)
        return "Mul"
    divide_vectors(graph, fold, result.s)
    return str(fold)
