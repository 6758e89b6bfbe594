"""ModelOpt's ``int4.quantize`` and ``int4.quantize_rtn``: an ONNX model in, its quantized `onnx.ModelProto` out."""

import glob
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.files.model_file import PROTOBUF_LIMIT, load_model, save_model
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.forms.registry import find_form
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites, unmatched
from jaxq.methods.registry import MethodSpec, find_method
from jaxq.modelopt.arrays import as_array, check_integer
from jaxq.modelopt.helpers import OPTIONS, check_options
from jaxq.modelopt.precision import Layer, get_num_bits, layer_block_size
from jaxq.pipeline.job import Gather, Job, Rule, check_job
from jaxq.pipeline.quantize import quantize_model
from jaxq.runtime.batches import Batch
from jaxq.runtime.inputs import InputSpec, read_input_spec, to_batch

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
    precision_info: Mapping[str, Layer] | None = None
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

    As in ModelOpt, weights of MatMul and Gemm are quantized, and kernels of Conv are left alone; scales are positive
    (max / 7), since TensorRT takes no others. `jaxq.pipeline.quantize_model` and ``python -m jaxq.run`` take kernels
    too, have more exact scales, and give a report.

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
            channel; or ModelOpt's records, ``{"precision": 8, "block_size": 128, "axis": 0}``. ``use_column_major``
            (False): codes [c_out, c_in] with a Transpose.

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
    method, form = _find_way(calibration_method, knobs.use_column_major)
    needs_data = find_method(method).needs_data
    if needs_data and calibration_data_reader is None:
        raise JaxqError(
            f"{calibration_method!r} needs calibration data: give calibration_data_reader=<an iterable of input "
            "dictionaries>, or calibration_method='rtn_dq', which needs none"
        )
    dtype = "uint4" if use_zero_point else "int4"
    fmt = make_format(dtype, 128 if block_size is None else check_integer("block_size", block_size))
    gather, providers = _gather(knobs, dtype), _providers(calibration_eps)
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder, _sentences_on_what_was_given(Path(folder)):
        source = _source(onnx_path, Path(folder))
        model = load_model(source)
        batches = _batches(calibration_data_reader, model) if needs_data else []
        job = Job(
            source=source,
            target=Path(folder) / "quantized.onnx",
            method=_spec(method, fmt, knobs),
            form=find_form(form),
            exclude=tuple(_excluded(model.graph, nodes_to_exclude)),
            cache=Path(folder) / "moments",
            external_above=PROTOBUF_LIMIT,
            rules=tuple(_rules(model, knobs, fmt)),
            gather=gather,
            providers=providers,
            kernels=False,
        )
        check_job(job, bool(batches))
        quantize_model(job, batches)
        return onnx.load(job.target)


def quantize_rtn(
    onnx_model: onnx.ModelProto, gemm_io_type: int, block_size: int, dq_only: bool = False
) -> onnx.ModelProto:
    """The model with weights rounded to nearest: scales ``max|block| / 7`` along the input channels, ties to even.

    Weights of MatMul and Gemm, that is; kernels of Conv are left alone, as in `quantize`.

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
    if not isinstance(onnx_model, onnx.ModelProto):
        raise JaxqError(f"onnx_model is of type {type(onnx_model).__name__}: give an onnx.ModelProto")
    if not isinstance(gemm_io_type, int) or gemm_io_type not in _FLOATS:
        raise JaxqError(f"gemm_io_type is {gemm_io_type!r}: give onnx.TensorProto.FLOAT or onnx.TensorProto.FLOAT16")
    kinds = _weight_types(onnx_model)
    if kinds - {gemm_io_type}:
        has = " and ".join(_FLOATS[kind] for kind in sorted(kinds))
        name = _FLOATS[gemm_io_type]
        raise JaxqError(f"gemm_io_type is {name}, and the model's weights have type {has}: convert the model first")
    return quantize(onnx_model, "rtn_dq" if dq_only else "rtn", block_size=block_size, nodes_to_exclude=None)


_FLOATS: dict[int, str] = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "FLOAT16"}


def _weight_types(proto: onnx.ModelProto) -> set[int]:
    """ONNX's numbers of the types of the weights that can be quantized."""
    model = ir.from_proto(proto)
    prepare(model)
    sites, _ = find_sites(model.graph)
    return {int(site.weight.dtype) for site in sites if site.weight.dtype is not None and not site.kernel}


def _read_knobs(given: Mapping[str, Any]) -> _Knobs:
    known = _Knobs.__dataclass_fields__
    if unknown := [name for name in given if name not in known]:
        raise JaxqError(f"quantize has no parameter {', '.join(map(repr, unknown))}: it takes {', '.join(known)}")
    knobs = _Knobs(**given)
    check_options({name: getattr(knobs, name) for name in OPTIONS})
    return knobs


def _find_way(calibration_method: str, column_major: bool) -> tuple[str, str]:
    """Method and form."""
    if not isinstance(calibration_method, str) or calibration_method not in _WAYS:
        raise JaxqError(f"calibration_method is {calibration_method!r}: choose one of {', '.join(_WAYS)}")
    method, form = _WAYS[calibration_method]
    if not column_major:
        return method, form
    if form != "dq":
        raise JaxqError(f"use_column_major goes with rtn_dq and the AWQ methods, not with {calibration_method!r}")
    return method, "column_major"


def _spec(method: str, fmt: WeightFormat, knobs: _Knobs) -> MethodSpec:
    return MethodSpec(
        method,
        fmt,
        alpha_step=float(knobs.awqlite_alpha_step),
        min_clip_ratio=float(knobs.awqclip_alpha_min),
        clip_step=float(knobs.awqclip_alpha_step),
    )


def _gather(knobs: _Knobs, dtype: str) -> Gather | None:
    axis = knobs.gather_quantize_axis
    if axis is None:
        return None
    if check_integer("gather_quantize_axis", axis) not in (-2, -1, 0, 1):
        raise JaxqError(f"gather_quantize_axis is {axis}: a table has the axes 0, 1 and -1")
    return Gather(int(axis), make_format(dtype, check_integer("gather_block_size", knobs.gather_block_size)))


def _strings(name: str, given: Any) -> tuple[str, ...]:
    """One string, or several."""
    strings = (given,) if isinstance(given, str) else given
    if not isinstance(strings, Iterable):
        raise JaxqError(f"{name} is {given!r}: give a list of strings")
    strings = tuple(strings)
    for each in strings:
        if not isinstance(each, str):
            raise JaxqError(f"{name} has {each!r}: give strings")
    return strings


def _providers(calibration_eps: Any) -> tuple[str, ...]:
    names = _strings("calibration_eps", calibration_eps)
    for name in names:
        if not re.fullmatch(r"(cpu|cuda|trt|dml)(:\d+)?", name):
            raise JaxqError(f"calibration_eps has {name!r}: choose of cpu, cuda:<device>, trt and dml:<device>")
    if not names:
        raise JaxqError("calibration_eps is empty: give ['cpu'], for one")
    return names


_PARAMETERS = {
    "gather.axis": "gather_quantize_axis",
    "gather.block_size": "gather_block_size",
    "mixed.block_size": "the block size in precision_info",
}
"""What `quantize` calls the options of a configuration."""


@contextmanager
def _sentences_on_what_was_given(folder: Path) -> Iterator[None]:
    """Errors speak of the model given, not of its copy in a temporary folder, and of `quantize`'s parameters."""
    try:
        yield
    except JaxqError as error:
        text = re.sub(rf"(model file|model) '{re.escape(str(folder))}[^']*'", "the model given", str(error))
        for ours, theirs in _PARAMETERS.items():
            text = text.replace(ours, theirs)
        raise JaxqError(text) from error


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
    batches = [_batch(f"item {i} of calibration_data_reader", feeds, spec) for i, feeds in enumerate(_samples(reader))]
    if not batches:
        raise JaxqError("calibration_data_reader gives nothing: a reader that was read before has to be rewound")
    return batches


def _batch(item: str, feeds: Any, spec: InputSpec) -> Batch:
    if not isinstance(feeds, Mapping):
        raise JaxqError(f"{item} is of type {type(feeds).__name__}: give dictionaries from input names to arrays")
    try:
        return to_batch({str(name): np.asarray(as_array(a, f"input {name!r}")) for name, a in feeds.items()}, spec)
    except JaxqError as error:
        text = str(error)
        for advice in (": give an npz file with arrays of these names", ": mend the file"):  # of data in files
            text = text.removesuffix(advice)
        raise JaxqError(f"{item}: {text}") from error


def _samples(reader: Any) -> Iterator[Any]:
    if isinstance(reader, Iterable):
        return iter(reader)
    if hasattr(reader, "get_next"):
        return iter(reader.get_next, None)
    raise JaxqError(f"calibration_data_reader is of type {type(reader).__name__}: give an iterable of dictionaries")


def _excluded(graph: ir.Graph, patterns: Sequence[str] | None) -> Iterator[str]:
    """Names of the nodes that ModelOpt's regular expressions mean, as shell patterns."""
    for pattern in _strings("nodes_to_exclude", () if patterns is None else patterns):
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise JaxqError(f"nodes_to_exclude has {pattern!r}, which is no regular expression: {error}") from error
        yield from (glob.escape(str(node.name)) for node in graph if node.name and expression.match(node.name))


def _rules(model: ir.Model, knobs: _Knobs, fmt: WeightFormat) -> list[Rule]:
    """Rules of ``precision_info``, then of ``layers_8bit``."""
    layers = _rules_by_layer(model.graph, knobs.layers_8bit, fmt)
    return [*_rules_by_weight(model, knobs.precision_info, fmt), *layers]


def _rules_by_layer(graph: ir.Graph, layers: str | Sequence[str], fmt: WeightFormat) -> list[Rule]:
    names = layers.split(",") if isinstance(layers, str) else _strings("layers_8bit", layers)
    wanted = [_tokens(name.strip()) for name in names if name.strip()]
    chosen = [str(n.name) for n in graph if n.name and any(_contains(_tokens(n.name), part) for part in wanted)]
    if wanted and not chosen:
        raise JaxqError(f"layers_8bit is {layers!r}: no node has such a name")
    return [Rule(tuple(map(glob.escape, chosen)), make_format(_dtype(fmt, 8), -1))] if chosen else []


def _rules_by_weight(model: ir.Model, info: Mapping[str, Layer] | None, fmt: WeightFormat) -> list[Rule]:
    get_num_bits(info)  # refuses what is no dictionary
    rules = []
    for name, entry in (info or {}).items():
        bits, block_size = get_num_bits(info, name), layer_block_size(fmt.block_size, info, name)
        if isinstance(entry, Mapping) and entry.get("axis") not in (None, 0):
            raise JaxqError(f"precision_info[{name!r}] has the axis {entry['axis']!r}: blocks lie along inputs, axis 0")
        rules.append(Rule((glob.escape(str(name)),), make_format(_dtype(fmt, bits), block_size)))
    if rules:
        prepare(model)
    if strangers := unmatched(model.graph, [p for rule in rules for p in rule.patterns]):
        names = [name for name in info or {} if glob.escape(str(name)) in strangers]
        raise JaxqError(f"precision_info names {', '.join(map(repr, names))}: the model has no such weight")
    return rules


def _dtype(fmt: WeightFormat, bits: int) -> str:
    """The format's dtype, int or uint, with other bits."""
    return f"{fmt.dtype.rstrip('4')}{bits}"


def _tokens(name: str) -> list[str]:
    return name.lstrip("/").replace("/", ".").split(".")


def _contains(tokens: Sequence[str], part: Sequence[str]) -> bool:
    return any(list(tokens[i : i + len(part)]) == list(part) for i in range(len(tokens) - len(part) + 1))
