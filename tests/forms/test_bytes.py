"""Every form and dtype: valid, and it gives what the weights that its own bytes stand for give."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.forms.registry import FORMS
from tests.support.forms import GROUPS, every_reader, every_weight, in_place, pairings, run_form, skip_old
from tests.support.models import FFN, tokens
from tests.support.running import quantize, relative, save
from tests.support.unpacked import dequantized


def named(form: str, fmt: WeightFormat, note: str = "") -> str:
    return f"{form} {fmt.dtype} {fmt.block_size}{note}"


CASTING = [form for form in FORMS if FORMS[form].casts and "int4" in FORMS[form].block_sizes]
FULL = [(form, IntegerFormat(32, full_range=True)) for form in CASTING]
NARROW = [("int4", 32, "float16"), ("uint8", 64, "float16"), ("int4", 16, FLOAT8), ("uint4", 64, FLOAT8)]
NARROW = [(form, make_format(d, b, scale_dtype=s)) for form in CASTING for d, b, s in NARROW]
FILES = [
    *[pytest.param(form, fmt, id=named(form, fmt)) for form in FORMS for fmt in pairings(form)],
    *[pytest.param(form, fmt, id=named(form, fmt, " full range")) for form, fmt in FULL],
    *[pytest.param(form, fmt, id=f"{form} {fmt}") for form, fmt in NARROW],
]
HALF = [
    make_format(d, b)
    for d, b in (("int4", 32), ("uint4", -1), ("uint8", 64), ("int2", 32), ("nvfp4", 16), ("mxfp8", 32))
]
HALF += [make_format("int4", 32, scale_dtype=FLOAT8)]
HALF = [(form, fmt) for form in FORMS for fmt in HALF if fmt.block_size in FORMS[form].block_sizes.get(fmt.dtype, ())]
HALF = [(form, fmt) for form, fmt in HALF if FORMS[form].casts or FLOAT8 not in str(fmt)]


@cache
def expected_weights(fmt: WeightFormat, dtype: type) -> dict[str, np.ndarray]:
    """Round trips of weights; those that read one activation side by side, as NVFP4's scale of all is theirs."""
    source, found = every_weight(dtype), {}
    for names in GROUPS:
        w = jnp.asarray(np.concatenate([source[name] for name in names], axis=1))
        back = np.asarray(fmt.of_weights(np.dtype(dtype).name).round_trip(w))
        found |= dict(zip(names, np.split(back, len(names), axis=1), strict=True))
    return found


def check(form, fmt, dtype, tmp_path):
    skip_old(form, fmt, dtype)
    proto = every_reader(dtype)
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    outcome = quantize(source, target, fmt=fmt, form=form)
    assert len(outcome.layers) == 6
    onnx.checker.check_model(str(target), full_check=True)
    weights = dequantized(onnx.load(target))
    expected = expected_weights(fmt, dtype)
    assert set(weights) == set(expected)
    for name, w in weights.items():
        np.testing.assert_allclose(w, expected[name], rtol=2**-22)
    feeds = {"x": tokens(5, FFN).astype(dtype)}
    results = run_form(form, target, feeds), run_form(form, in_place(proto, weights), feeds)
    for got, want in zip(*results, strict=True):
        assert got.dtype == dtype
        assert relative(got, want) < (1e-6 if dtype == np.float32 else 3e-3)


@pytest.mark.parametrize(("form", "fmt"), FILES)
def test_a_file_gives_what_its_bytes_stand_for(form, fmt, tmp_path):
    check(form, fmt, np.float32, tmp_path)


@pytest.mark.parametrize(("form", "fmt"), [pytest.param(f, x, id=named(f, x)) for f, x in HALF])
def test_a_file_in_half_precision_gives_what_its_bytes_stand_for(form, fmt, tmp_path):
    check(form, fmt, np.float16, tmp_path)
