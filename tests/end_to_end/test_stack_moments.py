"""The moments of a stack's matrices are those of the tokens that each matrix multiplies."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites
from jaxq.numerics.moments import Moments
from jaxq.runtime.batches import Batch
from tests.support.models import HIDDEN, MODELS, tokens
from tests.support.moe_models import EXPERTS, UNREACHED
from tests.support.moments import captured_moments
from tests.support.running import run
from tests.support.stacks import ROUTER, X, product, stack


def read_moments(proto: onnx.ModelProto, batches: Sequence[Batch], name: str) -> list[Moments]:
    """Those of the matrices that multiply an activation; one where they are the same for all."""
    model = ir.from_proto(proto)
    prepare(model)
    sites, _ = find_sites(model.graph, ROUTER)
    (activation,) = {r for site in sites for r in site.activations if r.value.name == name}
    moments, _ = captured_moments(model, [activation], batches)
    return [moments[k] for k in ([activation.shared_key] if activation.shared_key in moments else activation.keys)]


def assert_moments_of(got: Moments, rows: np.ndarray) -> None:
    """Compares with float64; rows of zeros are no tokens."""
    rows = rows[(rows != 0).any(axis=1)].astype(np.float64)
    assert int(got.tokens) == len(rows)
    count = max(1, len(rows))
    np.testing.assert_allclose(got.h, rows.T @ rows / count, rtol=1e-4, atol=1e-5 * abs(rows**2).max(initial=0))
    np.testing.assert_allclose(got.a, abs(rows).sum(axis=0) / count, rtol=1e-4)


SHAPES = {
    "experts, tokens": (3, 5, 8),
    "batch, experts, tokens": (2, 3, 5, 8),
    "more in front": (2, 2, 3, 5, 8),
    "tokens": (5, 8),
    "one, tokens": (1, 5, 8),
    "batch, one, tokens": (2, 1, 5, 8),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_moments_of_each_matrix_are_those_of_its_tokens(shape):
    w, x = stack(3, 8, 4), [tokens(*shape, seed=i) for i in range(2)]
    proto = product([*"abcd"[: len(shape) - 1], 8], w, [*"efgh"[: max(len(shape), 3) - 1], 4])
    found = read_moments(proto, [Batch({"x": each}) for each in x], "x")
    own = len(shape) > 2 and shape[-3] == 3
    assert len(found) == (3 if own else 1)
    for i, moments in enumerate(found):
        rows = [np.moveaxis(each, -3, 0)[i] if own else each for each in x]
        assert_moments_of(moments, np.concatenate([r.reshape(-1, 8) for r in rows]))


def test_padding_of_a_stacks_activation_is_left_out():
    keep = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    for shape in ((2, 3, 5, 8), (3, 10, 8)):
        x = tokens(*shape)
        proto = product([*"abc"[: len(shape) - 1], 8], stack(3, 8, 4), [*"efg"[: len(shape) - 1], 4])
        for i, moments in enumerate(read_moments(proto, [Batch({"x": x}, keep)], "x")):
            rows = np.moveaxis(x, -3, 0)[i].reshape(-1, 8)
            assert_moments_of(moments, rows[keep.ravel() > 0])


def test_matrices_that_begin_with_the_same_tokens():
    """One sum for all, as long as it is; from then on one for each."""
    first = np.broadcast_to(tokens(5, 8), (3, 5, 8)).copy()
    batches = [first, tokens(3, 7, 8, seed=1), first]
    proto = product(["a", "b", 8], stack(3, 8, 4), ["e", "f", 4])
    for i, moments in enumerate(read_moments(proto, [Batch({"x": x}) for x in batches], "x")):
        assert_moments_of(moments, np.concatenate([x[i] for x in batches]))
    (same,) = read_moments(proto, [Batch({"x": first})] * 2, "x")
    assert int(same.tokens) == 10


@pytest.mark.parametrize(("name", "own"), [("masked_moe", True), ("dense_moe", False), ("broadcast_moe", False)])
def test_moments_of_experts(name, own):
    proto = MODELS[name]()
    activation = {"masked_moe": "slots", "dense_moe": "copies", "broadcast_moe": "tokens"}[name]
    (x,) = run(proto, X, activation)
    found = read_moments(proto, [Batch(X)], activation)
    assert len(found) == (EXPERTS if own else 1)
    for i, moments in enumerate(found):
        assert_moments_of(moments, x[i] if own else X["x"].reshape(-1, HIDDEN))
    if own:
        assert int(found[UNREACHED].tokens) == 0 and not np.asarray(found[UNREACHED].h).any()
