"""A group of siblings is quantized together, and each weight comes back as its format rounds it."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.graph.sites import Group, find_sites, sibling_groups
from jaxq.methods.registry import MethodSpec
from jaxq.numerics.moments import accumulate, finish, zero_sums
from jaxq.search.group import quantize_group
from jaxq.search.result import Layer, effective_weight
from tests.support import models
from tests.support.prepared import prepared

FMT = IntegerFormat(block_size=32)


def siblings() -> Group:
    """Three weights that multiply one activation."""
    sites, _ = find_sites(prepared(models.siblings()).graph)
    (group,) = sibling_groups(sites)
    return group


@pytest.mark.parametrize("dtypes", [("int4",) * 3, ("int4", "int8", "int4"), ("uint4", "nvfp4", "mxfp4")], ids=str)
def test_each_sibling_is_rounded_in_its_own_format(dtypes):
    group = siblings()
    formats = [make_format(dtype) for dtype in dtypes]
    result = quantize_group(group, formats, None, MethodSpec("rtn_dq", FMT))
    assert not result.scaled and result.tokens == 0
    for i, (site, fmt) in enumerate(zip(group.sites, formats, strict=True)):
        np.testing.assert_array_equal(effective_weight(result, i), fmt.round_trip(jnp.asarray(site.array())))
        assert result.layers[i].dtype == fmt.dtype and result.weights[i].nbytes == result.layers[i].nbytes


def test_siblings_share_the_scale_and_lose_no_more_than_by_rounding():
    group = siblings()
    c_in = group.sites[0].c_in
    x = np.random.default_rng(3).standard_normal((200, c_in)) * np.linspace(0.1, 10, c_in)
    sums = accumulate(zero_sums(c_in), jnp.asarray(x, jnp.float32), jnp.ones(200))
    result = quantize_group(group, [FMT] * 3, lambda _: finish(sums), MethodSpec("awq_lite", FMT))
    assert result.scaled and result.s.shape == (c_in,) and result.tokens == 200
    for i, site in enumerate(group.sites):
        error = x @ (effective_weight(result, i).astype(np.float64) - site.array())
        assert result.layers[i].loss == pytest.approx(np.sum(error**2) / 200, rel=1e-3)
    losses = np.array([(layer.loss, layer.loss_rtn) for layer in result.layers], np.float64)
    assert losses[:, 0].sum() <= losses[:, 1].sum()


def test_a_layer_before_the_search_has_sizes_and_no_losses():
    group = siblings()
    result = quantize_group(group, [FMT] * 3, None, MethodSpec("rtn_dq", FMT))
    planned = Layer.planned(group.sites[0], result.weights[0])
    assert planned.loss is None and planned.sqnr_db is None
    assert (planned.name, planned.nbytes, planned.size) == (
        group.sites[0].name,
        result.layers[0].nbytes,
        group.sites[0].array().size,
    )
    assert not planned.is_table and not planned.nested
