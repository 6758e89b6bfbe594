"""Results of searched groups come back from disk as they were."""

import numpy as np
import pytest

from jaxq.files.model_file import load_model
from jaxq.formats.registry import make_format
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites, sibling_groups
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.resume import ResultStore
from jaxq.search.group import quantize_group
from tests.support import models
from tests.support.running import save


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "nvfp4", "mxfp8", "mxfp4"])
@pytest.mark.parametrize("name", ["swiglu", "half", "stacked", "masked_moe", "convolution", "grouped"])
def test_weights_come_back_from_disk_as_they_were(dtype, name, tmp_path):
    proto = models.convolution(group=2) if name == "grouped" else models.MODELS[name]()
    model = load_model(save(proto, tmp_path))
    prepare(model)
    spec = MethodSpec("rtn_dq", make_format(dtype))
    sites = [site for site in find_sites(model.graph)[0] if dtype != "nvfp4" or site.count == 1]
    store = ResultStore(tmp_path / "weights", "key")
    for group in sibling_groups(sites):
        formats = [spec.fmt] * len(group.sites)
        result = quantize_group(group, formats, None, spec)
        store.put(result)
        back = store.get(group, formats)
        assert back is not None
        assert back.layers == result.layers
        assert (back.scaled, back.tokens) == (result.scaled, result.tokens)
        np.testing.assert_array_equal(back.s, result.s)
        for old, new in zip(result.weights, back.weights, strict=True):
            assert (old.fmt, old.shape, old.nbytes) == (new.fmt, new.shape, new.nbytes)
            for a, b in ((old.codes, new.codes), (old.s, new.s), (old.zp, new.zp), (old.s2, new.s2)):
                assert (a is None) == (b is None)
                if a is not None and b is not None:
                    assert a().dtype == b().dtype
                    assert a().tobytes() == b().tobytes()
                    assert a().shape == b().shape
