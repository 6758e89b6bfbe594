"""Bits, block sizes and shapes of scales by weight name: functions of ModelOpt's ``quant_utils`` page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from jaxq.errors import JaxqError
from jaxq.modelopt.arrays import AnyArray, as_array, check_integer
from jaxq.numerics import integer
from jaxq.numerics.blocks import check_axis

INT4_MIN, INT4_MAX = -8, 7
UINT4_MIN, UINT4_MAX = 0, 15
CLIP_MIN = 1e-5
"""ModelOpt's least scale, for code that imports it; jaxq's scales have no such floor."""

Layer = int | Mapping[str, Any]
"""Bits of a weight, or ModelOpt's record for a weight: ``{"precision": 8, "block_size": -1, "axis": 0}``."""


def get_num_bits(precision_info: Mapping[str, Layer] | None = None, name: str | None = None) -> int:
    """Bits of the weight of that name: ``precision_info[name]``, else 4.

    Args:
        precision_info: Bits by weight name; records of ModelOpt's ``layer_info``, ``{"precision": 8, ...}``, are read
            too.
        name: The weight's name.

    Returns:
        2 to 8.

    Raises:
        JaxqError: ``precision_info`` is no dictionary, or its entry gives no number of 2 to 8.

    Source: NVIDIA ModelOpt's ``quant_utils.get_num_bits``.

    Example:
        >>> get_num_bits({"w": 8}, "w"), get_num_bits({"w": {"precision": 8}}, "w"), get_num_bits(None, "w")
        (8, 8, 4)
    """
    if precision_info is not None and not isinstance(precision_info, Mapping):
        raise JaxqError(f"precision_info is {precision_info!r}: give a dictionary from weight names to bits")
    if name is None or not precision_info or name not in precision_info:
        return 4
    entry = precision_info[name]
    bits = entry.get("precision") if isinstance(entry, Mapping) else entry
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer):
        raise JaxqError(f"precision_info[{name!r}] is {entry!r}: give a number of bits")
    try:
        integer.code_range(int(bits), unsigned=False)
    except JaxqError as error:
        raise JaxqError(f"precision_info[{name!r}] is {entry!r}: {error}") from error
    return int(bits)


def update_block_size(
    num_bits: int, block_size: int, quantize_axis: int = 0, w: Num[AnyArray, "..."] | None = None
) -> int:
    """Rows a block: the whole axis where ``block_size`` is -1 or ``num_bits`` 8 (per channel), else ``block_size``.

    Args:
        num_bits: Bits of the weight.
        block_size: Rows a block, or -1.
        quantize_axis: The axis that is split into blocks.
        w: The weight, of which only the shape is read; needed for whole axes only.

    Returns:
        A number of rows.

    Raises:
        JaxqError: blocks span the axis, and ``w`` is missing or lacks the axis.

    Source: the page of NVIDIA ModelOpt's ``quant_utils.update_block_size``.

    Example:
        >>> update_block_size(4, 128), update_block_size(8, 128, w=np.zeros((300, 2)))
        (128, 300)
    """
    if block_size != -1 and num_bits != 8:
        return block_size
    if w is None:
        raise JaxqError(f"w is missing: blocks of {num_bits} bits and size {block_size} span the weight's axis")
    shape = as_array(w).shape
    return shape[check_axis(len(shape), quantize_axis)]


def reshape_scales_for_per_channel_nodes(
    scales_map: Mapping[str, Float[AnyArray, "..."]],
    block_size: int,
    precision_info: Mapping[str, Layer] | None = None,
) -> dict[str, Float[AnyArray, "..."]]:
    """Scales by weight name, flat for weights with per-channel scales: ``[1, c_out]`` -> ``[c_out]``.

    Args:
        scales_map: Scales by weight name; it does not change.
        block_size: Block size of all weights; -1 is per channel.
        precision_info: Bits by weight name, as `get_num_bits` takes it. 8 bits are per channel, unless a record
            gives another ``block_size``.

    Returns:
        A new dict with the same names.

    Raises:
        JaxqError: a per-channel weight has more than one scale for a channel.

    Source: NVIDIA ModelOpt's ``quant_utils.reshape_scales_for_per_channel_nodes``.

    Example:
        >>> maps = reshape_scales_for_per_channel_nodes({"a": np.ones((1, 3)), "b": np.ones((2, 3))}, 16, {"a": 8})
        >>> maps["a"].shape, maps["b"].shape
        ((3,), (2, 3))
    """
    reshaped = {}
    for name, scales in scales_map.items():
        s = as_array(scales, f"the scales of {name!r}")
        per_channel = layer_block_size(block_size, precision_info, name) == -1
        if per_channel and s.size != max(s.shape, default=1):
            raise JaxqError(f"the scales of {name!r} have shape {list(s.shape)}: give one scale for each channel")
        reshaped[name] = s.reshape(-1) if per_channel else s
    return reshaped


def layer_block_size(block_size: int, precision_info: Mapping[str, Layer] | None, name: str) -> int:
    """Block size of a weight: that of its record, else -1 (per channel) for 8 bits, else ``block_size``.

    Example:
        >>> [layer_block_size(16, {"a": 8, "b": {"precision": 8, "block_size": 32}}, name) for name in "abc"]
        [-1, 32, 16]
    """
    entry = (precision_info or {}).get(name)
    if isinstance(entry, Mapping) and entry.get("block_size") is not None:
        return check_integer(f"block_size of precision_info[{name!r}]", entry["block_size"])
    return -1 if get_num_bits(precision_info, name) == 8 else block_size


def get_layer_block_size(
    layer_info: Mapping[str, Mapping[str, Any]] | None = None,
    name: str | None = None,
    default_block_size: int | None = None,
) -> int | None:
    """Block size of the weight of that name: that of its record in ``layer_info``, else the default.

    Args:
        layer_info: ModelOpt's records by weight name, ``{"precision": 8, "block_size": -1, "axis": 0}``.
        name: The weight's name.
        default_block_size: The value for weights without a record, or with a record that has no block size.

    Returns:
        Rows a block, -1 per channel, or the default.

    Raises:
        JaxqError: ``layer_info`` is no dictionary of dictionaries, or the block size is no integer.

    Source: NVIDIA ModelOpt 0.47's ``quant_utils.get_layer_block_size``.

    Example:
        >>> get_layer_block_size({"w": {"block_size": 32}}, "w", 128), get_layer_block_size(None, "w", 128)
        (32, 128)
    """
    return _layer_integer("block_size", layer_info, name, default_block_size)


def get_layer_axis(
    layer_info: Mapping[str, Mapping[str, Any]] | None = None,
    name: str | None = None,
    default_axis: int | None = None,
) -> int | None:
    """Quantization axis of the weight of that name: that of its record in ``layer_info``, else the default.

    Args:
        layer_info: ModelOpt's records by weight name, ``{"precision": 8, "block_size": -1, "axis": 0}``.
        name: The weight's name.
        default_axis: The value for weights without a record, or with a record that has no axis.

    Returns:
        The axis that is split into blocks, or the default.

    Raises:
        JaxqError: ``layer_info`` is no dictionary of dictionaries, or the axis is no integer.

    Source: NVIDIA ModelOpt 0.47's ``quant_utils.get_layer_axis``.

    Example:
        >>> get_layer_axis({"w": {"axis": 1}}, "w", 0), get_layer_axis({"w": {"precision": 8}}, "w", 0)
        (1, 0)
    """
    return _layer_integer("axis", layer_info, name, default_axis)


def _layer_integer(
    key: str, layer_info: Mapping[str, Mapping[str, Any]] | None, name: str | None, default: int | None
) -> int | None:
    """The entry ``key`` of the weight's record as an int, or the default."""
    if layer_info is not None and not isinstance(layer_info, Mapping):
        raise JaxqError(f"layer_info is {layer_info!r}: give a dictionary from weight names to records")
    if name is None or not layer_info or name not in layer_info:
        return default
    record: Any = layer_info[name]
    if not isinstance(record, Mapping):
        raise JaxqError(f"layer_info[{name!r}] is {record!r}: give a dictionary such as {{'precision': 8, 'axis': 0}}")
    value = record.get(key, default)
    return None if value is None else check_integer(f"{key} of layer_info[{name!r}]", value)
