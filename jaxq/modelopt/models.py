"""ModelOpt's ``int4.quantize`` and ``int4.quantize_rtn``: an ONNX model in, its quantized `onnx.ModelProto` out."""

import glob
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from jaxq.capture import Batch
from jaxq.errors import JaxqError
from jaxq.formats import WeightFormat, make_format
from jaxq.inputs import read_input_spec, to_batch
from jaxq.job import Gather, Job, Rule, check_job
from jaxq.methods import MethodSpec, find_method
from jaxq.model_file import PROTOBUF_LIMIT, load_model, save_model
from jaxq.pipeline import quantize_model

_WAYS = {
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
"""Method and form of each ``calibration_method``."""


@dataclass(frozen=True)
class _Knobs:
    """What `quantize` takes beyond its named parameters."""

    awqlite_alpha_step: float = 0.1
    awqclip_alpha_step: float = 0.05
    awqclip_alpha_min: float = 0.5
    awqclip_bsz_col: int = 1024
    gather_quantize_axis: int | None = None
    gather_block_size: int = 32
    layers_8bit: str | Sequence[str] = ()
    precision_info: Mapping[str, int] | None = None
    use_column_major: bool = False


def quantize(
    onnx_path: str | os.PathLike[str] | onnx.ModelProto,
    calibration_method: str = "awq_clip",
    calibration_data_reader: Any = None,
    calibration_eps: Sequence[str] = ["cuda:0", "cpu"],
    use_external_data_format: bool = True,
    use_zero_point: bool = False,
    block_size: int | None = None,
    nodes_to_exclude: Sequence[str] | None = ["/lm_head"],
    **kwargs: Any,
) -> onnx.ModelProto:
    """The model with 4-bit weights; ModelOpt's ``int4.quantize`` on jaxq's pipeline. The model given stays as it is.

    Scales are positive (max / 7), as ModelOpt's are: TensorRT takes no others. `jaxq.pipeline.quantize_model` and
    ``python -m jaxq.run`` have more exact ones, and a report.

    Args:
        onnx_path: Path of an ONNX file, or a model in memory.
        calibration_method: "rtn" (float weights between QuantizeLinear and DequantizeLinear), "rtn_dq", "awq_lite",
            "awq_clip" or "awq_full" (codes); each with "_trt" behind it for TensorRT's own operators.
        calibration_data_reader: Any iterable of dictionaries from input names to arrays, or an object with
            ``get_next()``, as onnxruntime's CalibrationDataReader; methods that start with "rtn" read none.
            ``attention_mask``, ``position_ids`` and ``token_type_ids`` are made where they are missing; tokens whose
            ``attention_mask`` is 0 do not count.
        calibration_eps: Where onnxruntime may run the calibration, the first one first: "cpu", "cuda:0", "trt",
            "dml:0"; those that it lacks are passed over.
        use_external_data_format: Kept for ModelOpt's callers: temporary files use external data where they must.
        use_zero_point: Unsigned codes with a zero point per block.
        block_size: Rows a block: 16, 32, 64, 128 or 256, or -1 per channel; None is 128.
        nodes_to_exclude: Regular expressions; nodes whose names begin with one are left alone.
        kwargs: ``awqlite_alpha_step`` (0.1): step of the grid over alpha. ``awqclip_alpha_step`` (0.05) and
            ``awqclip_alpha_min`` (0.5): the grid over clip ratios. ``awqclip_bsz_col``: has no effect, columns are
            searched at once. ``gather_quantize_axis`` (None: leave tables of Gather alone) and ``gather_block_size``
            (32). ``layers_8bit``: names, comma-separated or a list; nodes whose name has one of them between dots or
            slashes get INT8 per channel. ``precision_info``: bits by weight name, 4 where it says nothing, 8 is per
            channel. ``use_column_major`` (False): codes [c_out, c_in] with a Transpose.

    Returns:
        The quantized model, opset 21 or newer, its weights in memory.

    Raises:
        JaxqError: a parameter is unknown or out of range, the data does not fit the model, a method that needs data
            gets none, or the model has no weight that can be quantized.

    Source: NVIDIA ModelOpt's ``onnx.quantization.int4.quantize``.

    Example:
        >>> from jaxq.embedded import build_model
        >>> import onnx_ir as ir
        >>> quantized = quantize(ir.to_proto(build_model()), "rtn_dq", block_size=64)
        >>> sum(t.data_type == onnx.TensorProto.INT4 for t in quantized.graph.initializer)
        28
    """
    del use_external_data_format
    knobs = _read_knobs(kwargs)
    if calibration_method not in _WAYS:
        raise JaxqError(f"calibration_method is {calibration_method!r}: choose one of {', '.join(_WAYS)}")
    method, form = _WAYS[calibration_method]
    if knobs.use_column_major:
        if form != "dq":
            raise JaxqError(f"use_column_major goes with rtn_dq and the AWQ methods, not with {calibration_method!r}")
        form = "column_major"
    fmt = make_format("uint4" if use_zero_point else "int4", 128 if block_size is None else block_size)
    spec = MethodSpec(
        method,
        fmt,
        alpha_step=float(knobs.awqlite_alpha_step),
        min_alpha=float(knobs.awqclip_alpha_min),
        clip_step=float(knobs.awqclip_alpha_step),
    )
    if find_method(method).needs_data and calibration_data_reader is None:
        raise JaxqError(
            f"{calibration_method!r} needs calibration data: give calibration_data_reader=<an iterable of input "
            "dictionaries>, or calibration_method='rtn_dq', which needs none"
        )
    table = make_format("uint4" if use_zero_point else "int4", knobs.gather_block_size)
    gather = None if knobs.gather_quantize_axis is None else Gather(knobs.gather_quantize_axis, table)
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder:
        source = _source(onnx_path, Path(folder))
        model = load_model(source)
        batches = _batches(calibration_data_reader, model) if find_method(method).needs_data else []
        job = Job(
            source=source,
            target=Path(folder) / "quantized.onnx",
            method=spec,
            form=form,
            exclude=tuple(_excluded(model.graph, nodes_to_exclude or ())),
            cache=Path(folder) / "moments",
            external_above=PROTOBUF_LIMIT,
            rules=tuple(_rules(model.graph, knobs, fmt)),
            gather=gather,
            providers=tuple(calibration_eps),
        )
        check_job(job, bool(batches))
        quantize_model(job, batches)
        return onnx.load(job.target)


def quantize_rtn(
    onnx_model: onnx.ModelProto, gemm_io_type: int, block_size: int, dq_only: bool = False
) -> onnx.ModelProto:
    """The model with weights rounded to nearest: scales ``max|block| / 7`` along the input channels, ties to even.

    Args:
        onnx_model: The model; it stays as it is.
        gemm_io_type: Type of the scales and of the products, ``onnx.TensorProto.FLOAT`` or ``FLOAT16``: the type that
            the model's weights have.
        block_size: Rows a block: 16, 32, 64, 128 or 256, or -1 per channel.
        dq_only: Store the codes, with DequantizeLinear alone; else the float weight, with QuantizeLinear before it.

    Returns:
        The quantized model.

    Raises:
        JaxqError: a parameter is out of range, the model's weights have another type, or it has none.

    Source: NVIDIA ModelOpt's ``onnx.quantization.int4.quantize_rtn``; its page says max / 8, its code takes 7.

    Example:
        >>> from jaxq.embedded import build_model
        >>> quantized = quantize_rtn(ir.to_proto(build_model()), onnx.TensorProto.FLOAT, 32, dq_only=True)
        >>> "DequantizeLinear" in {node.op_type for node in quantized.graph.node}
        True
    """
    kinds = {t.data_type for t in onnx_model.graph.initializer if len(t.dims) == 2} & {*_FLOATS}
    if gemm_io_type not in _FLOATS or kinds - {gemm_io_type}:
        name = _FLOATS.get(gemm_io_type, str(gemm_io_type))
        has = " and ".join(_FLOATS[kind] for kind in sorted(kinds)) or "none"
        raise JaxqError(f"gemm_io_type is {name}, and the model's weights have type {has}: convert the model first")
    return quantize(onnx_model, "rtn_dq" if dq_only else "rtn", block_size=block_size, nodes_to_exclude=None)


_FLOATS: dict[int, str] = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "FLOAT16"}


def _read_knobs(given: Mapping[str, Any]) -> _Knobs:
    known = _Knobs.__dataclass_fields__
    if unknown := [name for name in given if name not in known]:
        raise JaxqError(f"quantize has no parameter {', '.join(map(repr, unknown))}: it takes {', '.join(known)}")
    knobs = _Knobs(**given)
    for name in ("awqlite_alpha_step", "awqclip_alpha_step", "awqclip_alpha_min"):
        if not isinstance(getattr(knobs, name), int | float):
            raise JaxqError(f"{name} is {getattr(knobs, name)!r}: give a number")
    columns = knobs.awqclip_bsz_col
    if not isinstance(columns, int) or columns < 1:
        raise JaxqError(f"awqclip_bsz_col is {columns!r}: give a positive number of columns")
    return knobs


def _source(model: str | os.PathLike[str] | onnx.ModelProto, folder: Path) -> Path:
    if not isinstance(model, onnx.ModelProto):
        if not isinstance(model, str | os.PathLike):
            raise JaxqError(f"onnx_path is of type {type(model).__name__}: give a path or an onnx.ModelProto")
        return Path(model)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise JaxqError(
                f"weight {tensor.name!r} lies in a file beside the model, which a ModelProto does not know: "
                "give the model's path, or load its external data first"
            )
    path = folder / "source.onnx"
    save_model(ir.from_proto(model), path, PROTOBUF_LIMIT)
    return path


def _batches(reader: Any, model: ir.Model) -> list[Batch]:
    spec = read_input_spec(model)
    batches = []
    for i, feeds in enumerate(_samples(reader)):
        if not isinstance(feeds, Mapping):
            raise JaxqError(
                f"item {i} of calibration_data_reader is of type {type(feeds).__name__}: give dictionaries from input "
                "names to arrays"
            )
        batches.append(to_batch({str(name): np.asarray(array) for name, array in feeds.items()}, spec))
    if not batches:
        raise JaxqError("calibration_data_reader gives nothing: a reader that was read before has to be rewound")
    return batches


def _samples(reader: Any) -> Iterator[Any]:
    if isinstance(reader, Iterable):
        return iter(reader)
    if hasattr(reader, "get_next"):
        return iter(reader.get_next, None)
    raise JaxqError(f"calibration_data_reader is of type {type(reader).__name__}: give an iterable of dictionaries")


def _excluded(graph: ir.Graph, patterns: Sequence[str]) -> Iterator[str]:
    """Names of the nodes that ModelOpt's regular expressions mean, as shell patterns."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise JaxqError(f"nodes_to_exclude has {pattern!r}, which is no regular expression: {error}") from error
        yield from (glob.escape(str(node.name)) for node in graph if node.name and expression.match(node.name))


def _rules(graph: ir.Graph, knobs: _Knobs, fmt: WeightFormat) -> Iterator[Rule]:
    kind = fmt.dtype.rstrip("4")  # int or uint
    for name, bits in (knobs.precision_info or {}).items():
        yield Rule((glob.escape(name),), make_format(f"{kind}{bits}", -1 if bits == 8 else fmt.block_size))
    names = knobs.layers_8bit.split(",") if isinstance(knobs.layers_8bit, str) else knobs.layers_8bit
    wanted = [_tokens(name.strip()) for name in names if name.strip()]
    chosen = [str(n.name) for n in graph if n.name and any(_contains(_tokens(n.name), part) for part in wanted)]
    if wanted and not chosen:
        raise JaxqError(f"layers_8bit is {knobs.layers_8bit!r}: no node has such a name")
    if chosen:
        yield Rule(tuple(map(glob.escape, chosen)), make_format(f"{kind}8", -1))


def _tokens(name: str) -> list[str]:
    return name.lstrip("/").replace("/", ".").split(".")


def _contains(tokens: Sequence[str], part: Sequence[str]) -> bool:
    return any(list(tokens[i : i + len(part)]) == list(part) for i in range(len(tokens) - len(part) + 1))
