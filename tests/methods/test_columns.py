"""Wide weights are searched some columns at a time, with the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.formats.integers import FLOAT8
from jaxq.formats.registry import make_format
from jaxq.methods import choose, columns, measure
from jaxq.methods.keep_better import keep_better
from jaxq.methods.registry import METHODS, MethodSpec
from jaxq.numerics.moments import Moments

C_IN, COLUMNS = 64, 150
FORMATS = [
    make_format("int4", 32),
    make_format("uint4", 32, scale_dtype="float16"),
    make_format("int4", 32, scale_dtype=FLOAT8),
    make_format("nvfp4"),
    make_format("mxfp4"),
]


def _moments() -> Moments:
    x = np.random.default_rng(0).standard_normal((512, C_IN), np.float32) * np.geomspace(0.1, 3, C_IN, dtype=np.float32)
    return Moments(jnp.asarray(x.T @ x / 512), jnp.asarray(np.abs(x).mean(0)), jnp.int32(512))


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.dtype} {fmt.scale_dtype}")
@pytest.mark.parametrize("name", ["rtn_dq", "awq_full", "gptq", "awq_gptq"])
@pytest.mark.parametrize("corrected", [False, True], ids=["weight", "target"])
def test_some_columns_at_a_time_give_the_codes_of_all_at_once(name, fmt, corrected, monkeypatch):
    w = jax.random.normal(jax.random.key(1), (C_IN, COLUMNS)).at[3, 97].set(40.0)  # the scale of the whole weight
    targets = [w + 0.1 * jax.random.normal(jax.random.key(2), w.shape)] if corrected else None
    spec = MethodSpec(name, fmt, alpha_step=0.5, clip_step=0.25)
    arguments = ([(w, fmt)], [[COLUMNS]], _moments(), METHODS[name], spec, targets)
    (whole,), (whole_errors,) = keep_better(*arguments)
    widths = set[int]()

    def narrow(function, *arrays, anchor):
        def seen(*some):
            widths.add(some[0].shape[1])
            return function(*some)

        return columns.map_columns(seen, *arrays, anchor=anchor, most=C_IN * 40)

    monkeypatch.setattr(choose, "map_columns", narrow)
    monkeypatch.setattr(measure, "map_columns", narrow)
    (some,), (some_errors,) = keep_better(*arguments)
    assert widths == {39}  # four times 38, and the column with the greatest magnitude
    different = np.mean(np.asarray(some.quantized.q) != np.asarray(whole.quantized.q))
    assert different < 2e-3  # sums of products are rounded otherwise in matrices of another width
    np.testing.assert_array_equal(some.s, whole.s)
    if whole.quantized.s2 is not None:
        assert some.quantized.s2 is not None and float(some.quantized.s2) == float(whole.quantized.s2)
    assert np.mean(np.asarray(some.quantized.s) != np.asarray(whole.quantized.s)) < 5e-3
    assert some.clip_ratio.shape == whole.clip_ratio.shape
    for a, b in zip(jax.tree.leaves(some_errors), jax.tree.leaves(whole_errors), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=1e-5)


def test_a_weight_that_fits_is_worked_on_as_it_is():
    w = jnp.ones((4, 10))
    assert columns.map_columns(lambda some: some, w, anchor=0, most=40) is w


@pytest.mark.parametrize("most", [1, 4, 12, 20, 36, 40, 44])
def test_every_column_is_done_once(most):
    w = jnp.arange(44.0).reshape(4, 11)
    widths = []

    def double(w, pair):
        widths.append(w.shape[1])
        return {"w": 2 * w, "row": pair[0], "greatest": jnp.max(w)}

    result = columns.map_columns(double, w, (w[0], None), anchor=10, most=most)
    np.testing.assert_array_equal(result["w"], 2 * w)
    np.testing.assert_array_equal(result["row"], w[0])
    assert float(result["greatest"]) == 43
    assert len(set(widths)) == 1


def test_the_peak_column_knows_signs_and_scales():
    w = jnp.array([[1.0, -5.0, 4.0], [1.0, 2.0, 3.0]])
    assert int(columns.peak_column(w, jnp.ones(2))) == 1
    assert int(columns.peak_column(w, jnp.array([0.1, 1.0]))) == 2
