"""jaxq.formats.registry: NVFP4, MXFP8 and MXFP4 against numpy with ml_dtypes, and formats by name."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.microscaling import MxFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.formats.registry import DTYPES, WeightFormat, make_format

FLOATS: dict[str, WeightFormat] = {"nvfp4": Nvfp4Format(), "mxfp8": MxFormat("mxfp8"), "mxfp4": MxFormat("mxfp4")}
EACH = pytest.mark.parametrize("fmt", FLOATS.values(), ids=FLOATS)


def weight(rows: int, columns: int, seed: int = 0, spread: float = 6.0) -> np.ndarray:
    """Heavy tails, and columns of very different size."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(3, size=(rows, columns)) * 2.0 ** rng.uniform(-spread, spread, size=columns)
    return w.astype(np.float32)


def reference(w: np.ndarray, fmt: WeightFormat, ratio: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.floating]:
    """Codes as numbers, block scales as numbers, and the scale of the weight; in numpy, a row of blocks at a time."""
    rows = [w[i : i + fmt.block_size] for i in range(0, len(w), fmt.block_size)]
    s2 = np.float32(abs(w).max() / np.float32(6 * 448)) if fmt.dtype == "nvfp4" else np.float32(1)
    s2 = s2 if s2 > 0 else np.float32(1)
    codes, scales = [], []
    for block in rows:
        amax = abs(block).max(axis=0) * np.float32(ratio)
        if fmt.dtype == "nvfp4":
            s = amax / (np.float32(6) * s2)
            s = np.clip(np.where(s == 0, 1, s), 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        else:
            top = 448 if fmt.dtype == "mxfp8" else 6
            with np.errstate(divide="ignore"):
                s = 2.0 ** np.maximum(np.ceil(np.log2(amax.astype(np.float64) / top)), -127)
        element = ml_dtypes.float8_e4m3fn if fmt.dtype == "mxfp8" else ml_dtypes.float4_e2m1fn
        x = block / (s * s2).astype(np.float32) if fmt.dtype == "nvfp4" else block.astype(np.float64) / s
        x = np.clip(x, -448, 448) if fmt.dtype == "mxfp8" else np.clip(x, -6, 6)
        codes.append(x.astype(np.float32).astype(element).astype(np.float32))
        scales.append(s)
    return np.concatenate(codes), np.stack(scales), s2


@EACH
@pytest.mark.parametrize("shape", [(64, 5), (70, 3), (7, 1), (1, 4), (32, 1)], ids=str)
@pytest.mark.parametrize("ratio", [1.0, 0.7])
def test_codes_and_scales_are_the_references(fmt, shape, ratio):
    w = weight(*shape)
    got = fmt.quantize(jnp.asarray(w), ratio)
    codes, scales, s2 = reference(w, fmt, ratio)
    if fmt.dtype == "nvfp4":
        np.testing.assert_array_equal(np.asarray(got.s).astype(np.float32), scales)
        assert float(got.s2) == s2
    else:
        np.testing.assert_array_equal(2.0 ** (np.asarray(got.s).astype(np.float64) - 127), scales)
        assert got.s2 is None
    q = np.asarray(got.q)
    numbers = (q if fmt.dtype == "mxfp8" else q.view(ml_dtypes.float4_e2m1fn)).astype(np.float32)
    np.testing.assert_array_equal(numbers, codes)
    rows = np.arange(shape[0]) // fmt.block_size
    want = codes * (scales * s2).astype(np.float32)[rows]
    np.testing.assert_array_equal(np.asarray(fmt.dequantize(got)), want)
    np.testing.assert_array_equal(np.asarray(fmt.round_trip(jnp.asarray(w), ratio)), want)


@EACH
def test_what_was_quantized_is_quantized_to_itself(fmt):
    once = fmt.round_trip(jnp.asarray(weight(64, 8, spread=2)))
    np.testing.assert_array_equal(np.asarray(fmt.round_trip(once)), np.asarray(once))


@EACH
def test_a_ratio_for_each_block_and_column(fmt):
    w = weight(70, 4)
    n_blocks = -(-70 // fmt.block_size)
    ratio = np.random.default_rng(1).choice([0.5, 0.8, 1.0], size=(n_blocks, 4)).astype(np.float32)
    got = np.asarray(fmt.round_trip(jnp.asarray(w), jnp.asarray(ratio)))
    for r in (0.5, 0.8, 1.0):
        whole = np.asarray(fmt.round_trip(jnp.asarray(w), r))
        mine = (ratio == r)[np.arange(70) // fmt.block_size]
        np.testing.assert_array_equal(got[mine], whole[mine])


@EACH
@pytest.mark.parametrize("scale", [0.0, 1e-37, 1e-20, 1e20, 1e37])
def test_zeros_and_extremes_give_numbers(fmt, scale):
    w = np.float32(scale) * weight(48, 3, spread=0.5)
    w[:16] = 0
    got = np.asarray(fmt.round_trip(jnp.asarray(w)))
    assert np.isfinite(got).all()
    assert not got[:16].any()
    if scale and (scale > 1e-30 or fmt.dtype != "nvfp4"):
        assert np.linalg.norm((got - w).astype(np.float64)) < 0.2 * np.linalg.norm(w.astype(np.float64))


@EACH
def test_half_precision_weights_are_quantized_in_float32(fmt):
    w = weight(64, 4, spread=2)
    for dtype in ("float16", "bfloat16"):
        low = jnp.asarray(w).astype(dtype)
        np.testing.assert_array_equal(fmt.round_trip(low), fmt.round_trip(low.astype(jnp.float32)))


@EACH
def test_under_jit_and_vmap_the_numbers_are_the_same(fmt):
    stack = jnp.stack([jnp.asarray(weight(40, 3, seed=i)) for i in range(3)])
    want = jnp.stack([fmt.round_trip(w) for w in stack])
    np.testing.assert_array_equal(jax.jit(jax.vmap(fmt.round_trip))(stack), want)
    np.testing.assert_array_equal(jax.lax.map(fmt.round_trip, stack), want)


def test_siblings_side_by_side_share_the_weight_scale():
    w = weight(32, 6)
    got = Nvfp4Format().quantize(jnp.asarray(w))
    assert got.s2 is not None
    assert float(got.s2) == abs(w).max() / np.float32(2688)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_name_makes_its_format(dtype):
    block = {"nvfp4": 16, "mxfp8": 32, "mxfp4": 32}.get(dtype, 64)
    fmt = make_format(dtype, block, full_range=True)
    assert (fmt.dtype, fmt.block_size) == (dtype, block)
    assert fmt == make_format(dtype, block, full_range=True)
    assert hash(fmt) == hash(make_format(dtype, block, full_range=True))
    assert fmt.code_bits == (4 if dtype[-1] in "234" else 8)
    assert isinstance(fmt, IntegerFormat) == ("int" in dtype)
    assert fmt.of_weights("float16").dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "block", "sentence"),
    [
        ("int9", 32, "dtype is 'int9': choose one of int2, int3"),
        ("", 32, "dtype is '': choose one of"),
        ("nvfp4", 32, "block_size is 32: nvfp4 has blocks of 16; leave block_size out"),
        ("mxfp8", 16, "block_size is 16: mxfp8 has blocks of 32"),
        ("mxfp4", -1, "block_size is -1: mxfp4 has blocks of 32"),
    ],
)
def test_other_names_and_block_sizes_are_refused(dtype, block, sentence):
    with pytest.raises(JaxqError, match=f"^{sentence}"):
        make_format(dtype, block)


def test_there_are_two_mx_formats():
    with pytest.raises(JaxqError, match=r"^dtype is 'mxfp6': the MX formats are mxfp8 and mxfp4"):
        MxFormat("mxfp6")
