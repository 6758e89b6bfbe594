"""No array function makes temporaries of more than two copies of the weight, compiled for the CPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxq.formats.base import Quantized
from jaxq.formats.microscaling import MxFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.formats.registry import WeightFormat
from jaxq.numerics.float4 import block_ratios, decode_e2m1, divide_by_scales, encode_e2m1, round_e4m3, tensor_scale
from jaxq.numerics.integer import dq_tensor, find_full_range_scales, find_scales, quant_tensor, rtn
from jaxq.numerics.mx import scale_down, scale_up, shared_exponent
from jaxq.numerics.packing import pack_int4, unpack_int4

ROWS, COLUMNS, BLOCK = 1024, 512, 128


def shape(kind: str, *dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.dtype(kind))


def layout(rows: int, axis: int, block: int) -> tuple[jax.ShapeDtypeStruct, tuple[int, int]]:
    """A weight whose axis ``axis`` has ``rows``, and the shape of its scales."""
    blocks = -(-rows // block)
    dims, s_dims = ((rows, COLUMNS), (blocks, COLUMNS)) if axis == 0 else ((COLUMNS, rows), (COLUMNS, blocks))
    return shape("float32", *dims), s_dims


def integers(rows: int, axis: int, zero: bool) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Each function of `jaxq.numerics.integer`, with the shapes of its arrays."""
    w, s_dims = layout(rows, axis, BLOCK)
    s, zp = shape("float32", *s_dims), shape("uint8", *s_dims) if zero else None
    q = shape("uint8" if zero else "int8", *w.shape)
    return {
        "find_scales": (lambda w: find_scales(w, BLOCK, axis, 1.0, zero), (w,)),
        "find_full_range_scales": (lambda w: find_full_range_scales(w, BLOCK, axis), (w,)),
        "rtn": (lambda w, s, zp: rtn(w, s, BLOCK, axis, zp), (w, s, zp)),
        "dq_tensor": (lambda q, s, zp: dq_tensor(q, s, BLOCK, axis, zp), (q, s, zp)),
        "quant_tensor": (lambda w: quant_tensor(w, BLOCK, axis, 1.0, zero), (w,)),
    }


def floats(rows: int, axis: int) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Each function of float4, mx and packing, with the shapes of its arrays."""
    w, dims = layout(rows, axis, 16)
    s, s2 = shape("float32", *dims), shape("float32")
    e = shape("int32", *layout(rows, axis, 32)[1])
    codes, packed = shape("uint8", *w.shape), shape("uint8", rows * COLUMNS // 2)
    return {
        "tensor_scale": (tensor_scale, (w,)),
        "block_ratios": (lambda w, s2: block_ratios(w, s2, axis=axis), (w, s2)),
        "round_e4m3": (round_e4m3, (s,)),
        "divide_by_scales": (lambda w, s, s2: divide_by_scales(w, s, s2, axis=axis), (w, s, s2)),
        "encode_e2m1": (encode_e2m1, (w,)),
        "decode_e2m1": (decode_e2m1, (codes,)),
        "shared_exponent": (lambda s: shared_exponent(s, 6.0), (s,)),
        "scale_down": (lambda w, e: scale_down(w, e, axis=axis), (w, e)),
        "scale_up": (lambda w, e: scale_up(w, e, axis=axis), (w, e)),
        "pack_int4": (pack_int4, (codes,)),
        "unpack_int4": (lambda packed: unpack_int4(packed, w.shape, signed=True), (packed,)),
    }


def quantize_and_pack(w: jax.Array, fmt: WeightFormat) -> tuple[jax.Array, Quantized]:
    quantized = fmt.quantize(w)
    return pack_int4(quantized.q), quantized


CASES = [
    *(
        pytest.param(*call, id=f"{name}-rows={rows}-axis={axis}-zp={zero}")
        for rows in (ROWS, ROWS - 24)
        for axis in (0, 1)
        for zero in (False, True)
        for name, call in integers(rows, axis, zero).items()
    ),
    *(
        pytest.param(*call, id=f"{name}-rows={rows}-axis={axis}")
        for rows in (ROWS, ROWS - 24)
        for axis in (0, 1)
        for name, call in floats(rows, axis).items()
    ),
    *(
        pytest.param(
            lambda w, fmt=fmt: quantize_and_pack(w, fmt), (shape("float32", rows, COLUMNS),), id=f"{fmt}-{rows}"
        )
        for rows in (ROWS, ROWS - 24)
        for fmt in (Nvfp4Format(), MxFormat("mxfp4"))
    ),
]


@pytest.mark.parametrize(("function", "arrays"), CASES)
def test_temporaries(function, arrays):
    memory = jax.jit(function).lower(*arrays).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 2 * 4 * ROWS * COLUMNS


@pytest.mark.parametrize("name", ["rtn", "dq_tensor"])
def test_whole_blocks_and_ragged_ones_need_none(name):
    """The scales are spread over the weights as these are read, not before."""
    for rows in (ROWS, ROWS - 24):
        function, arrays = integers(rows, 0, zero=True)[name]
        memory = jax.jit(function).lower(*arrays).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes <= 0.05 * 4 * ROWS * COLUMNS
