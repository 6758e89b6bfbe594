"""The options of `jaxq.int4.quantize`: checked, and translated into the terms of a `jaxq.pipeline.job.Job`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jaxq.errors import JaxqError
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.methods.registry import MethodSpec
from jaxq.modelopt.arrays import check_integer
from jaxq.modelopt.awq_options import AWQ_OPTIONS, AWQOptions, read_awq_options
from jaxq.modelopt.precision import Layer
from jaxq.pipeline.job import Gather

METHOD_AND_FORM = {
    "rtn": ("rtn", "qdq"),
    "rtn_dq": ("rtn_dq", "dq"),
    "rtn_trt": ("rtn", "trt_qdq"),
    "rtn_dq_trt": ("rtn_dq", "trt"),
    "rtn_trt_dq": ("rtn_dq", "trt"),
    "awq_lite": ("awq_lite", "dq"),
    "awq_clip": ("awq_clip", "dq"),
    "awq_full": ("awq_full", "dq"),
    "awq_lite_trt": ("awq_lite", "trt"),
    "awq_clip_trt": ("awq_clip", "trt"),
    "awq_full_trt": ("awq_full", "trt"),
}
"""jaxq's method and form for each ``calibration_method`` of ModelOpt."""

REFUSED = {
    "log_level": "the call prints nothing",
    "input_shapes_profile": "onnxruntime gets the shapes from the calibration data",
    "enable_mixed_quant": "layers_8bit and precision_info name the weights with 8 bits",
}
"""Parameters of ModelOpt 0.47 that have no meaning here, with the reason; their default values are taken."""

_REFUSED_DEFAULTS: dict[str, Any] = {"log_level": "INFO", "input_shapes_profile": None, "enable_mixed_quant": False}


@dataclass(frozen=True)
class QuantizeOptions(AWQOptions):
    """The keyword arguments that `quantize` takes beside its named parameters; its docstring describes them."""

    gather_quantize_axis: int | None = None
    gather_block_size: int = 32
    layers_8bit: str | Sequence[str] = ()
    precision_info: Mapping[str, Layer] | None = None
    use_column_major: bool = False


def read_options(keywords: Mapping[str, Any]) -> QuantizeOptions:
    """The options among keyword arguments.

    Raises:
        JaxqError: a name is unknown or has no meaning here, or an option of AWQ is out of range.
    """
    for name, reason in REFUSED.items():
        if name in keywords and keywords[name] != _REFUSED_DEFAULTS[name]:
            raise JaxqError(f"{name} is {keywords[name]!r}, which has no effect here: {reason}; leave {name} out")
    keywords = {name: value for name, value in keywords.items() if name not in REFUSED}
    names = tuple(field.name for field in fields(QuantizeOptions))
    if unknown := [name for name in keywords if name not in names]:
        raise JaxqError(f"quantize has no parameter {', '.join(map(repr, unknown))}: it takes {', '.join(names)}")
    read_awq_options({name: value for name, value in keywords.items() if name in AWQ_OPTIONS})
    return QuantizeOptions(**keywords)


def find_method_and_form(calibration_method: str, column_major: bool) -> tuple[str, str]:
    """Names of jaxq's method and form.

    Raises:
        JaxqError: the method is unknown, or its codes cannot be stored as [c_out, c_in].

    Example:
        >>> find_method_and_form("awq_full_trt", column_major=False)
        ('awq_full', 'trt')
    """
    if not isinstance(calibration_method, str) or calibration_method not in METHOD_AND_FORM:
        raise JaxqError(f"calibration_method is {calibration_method!r}: choose one of {', '.join(METHOD_AND_FORM)}")
    method, form = METHOD_AND_FORM[calibration_method]
    if not column_major:
        return method, form
    if form != "dq":
        raise JaxqError(f"use_column_major goes with rtn_dq and the AWQ methods, not with {calibration_method!r}")
    return method, "column_major"


def method_spec(method: str, fmt: WeightFormat, options: QuantizeOptions) -> MethodSpec:
    """The method with its format and the grids of its searches."""
    return MethodSpec(
        method,
        fmt,
        alpha_step=float(options.awqlite_alpha_step),
        min_clip_ratio=float(options.awqclip_alpha_min),
        clip_step=float(options.awqclip_alpha_step),
    )


def table_format(options: QuantizeOptions, dtype: str) -> Gather | None:
    """Axis and format of tables that Gather reads; None where tables stay float.

    Raises:
        JaxqError: the axis or the block size is out of range.
    """
    axis = options.gather_quantize_axis
    if axis is None:
        return None
    if check_integer("gather_quantize_axis", axis) not in (-2, -1, 0, 1):
        raise JaxqError(f"gather_quantize_axis is {axis}: a table has the axes 0, 1 and -1")
    return Gather(int(axis), make_format(dtype, check_integer("gather_block_size", options.gather_block_size)))


def read_providers(calibration_eps: Any) -> tuple[str, ...]:
    """Names of onnxruntime's execution providers, in the order of preference.

    Raises:
        JaxqError: there is no name, or an unknown one.

    Example:
        >>> read_providers(["cuda:0", "cpu"])
        ('cuda:0', 'cpu')
    """
    names = read_strings("calibration_eps", calibration_eps)
    for name in names:
        if not re.fullmatch(r"(cpu|cuda|trt|dml)(:\d+)?", name):
            raise JaxqError(f"calibration_eps has {name!r}: choose from cpu, cuda:<device>, trt and dml:<device>")
    if not names:
        raise JaxqError("calibration_eps is empty: give ['cpu'], for example")
    return names


def read_strings(name: str, value: Any) -> tuple[str, ...]:
    """A string, or several, as a tuple; ``name`` is the parameter's name in errors.

    Raises:
        JaxqError: the value is neither a string nor an iterable of strings.

    Example:
        >>> read_strings("nodes_to_exclude", "/lm_head")
        ('/lm_head',)
    """
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Iterable):
        raise JaxqError(f"{name} is {value!r}: give a list of strings")
    strings = tuple(strings)
    for string in strings:
        if not isinstance(string, str):
            raise JaxqError(f"{name} has {string!r}: give strings")
    return strings
