"""ModelOpt's ``int4.quantize`` and ``int4.quantize_rtn``: an ONNX model in, its quantized `onnx.ModelProto` out."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.files.model_file import PROTOBUF_LIMIT, load_model, save_model
from jaxq.formats.registry import make_format
from jaxq.forms.registry import find_form
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites
from jaxq.methods.registry import find_method
from jaxq.modelopt.arrays import check_integer
from jaxq.modelopt.calibration_reader import read_batches
from jaxq.modelopt.quantize_options import (
    find_method_and_form,
    method_spec,
    read_options,
    read_providers,
    table_format,
)
from jaxq.modelopt.weight_rules import excluded_nodes, format_rules
from jaxq.pipeline.job import Job, check_job
from jaxq.pipeline.quantize import quantize_model

_FLOATS: dict[int, str] = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "FLOAT16"}

_PARAMETERS = {
    "gather.axis": "gather_quantize_axis",
    "gather.block_size": "gather_block_size",
    "mixed.block_size": "the block size in precision_info",
}
"""The parameter of `quantize` for each option of jaxq's configuration that an error may name."""


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
    """The model with 4-bit weights: ModelOpt's ``int4.quantize`` on jaxq's pipeline. The given model does not change.

    As in ModelOpt, weights of MatMul and Gemm are quantized and kernels of Conv are skipped. Scales are positive
    (max / 7), because TensorRT takes no others. `jaxq.pipeline.quantize_model` and ``python -m jaxq.run`` also quantize
    kernels, find more exact scales, and write a report.

    Args:
        onnx_path: Path of an ONNX file, or a model in memory.
        calibration_method: "rtn" (float weights between QuantizeLinear and DequantizeLinear), "rtn_dq", "awq_lite",
            "awq_clip" or "awq_full" (codes). Each takes the ending "_trt", for TensorRT's own operators.
        calibration_data_reader: Any iterable of dictionaries from input names to arrays, or an object with
            ``get_next()``, as onnxruntime's CalibrationDataReader. Methods that start with "rtn" need none.
            ``attention_mask``, ``position_ids`` and ``token_type_ids`` are added where they are missing. Tokens whose
            ``attention_mask`` is 0 do not count.
        calibration_eps: Devices for the calibration in the order of preference: "cpu", "cuda:0", "trt", "dml:0".
            Devices that onnxruntime lacks are skipped.
        use_external_data_format: Ignored: temporary files use external data where their size needs it.
        use_zero_point: Unsigned codes with a zero point per block.
        block_size: Rows a block, 2 or more, or -1 per channel; None is 128. onnxruntime is fast with powers of two
            from 16 on.
        nodes_to_exclude: Regular expressions; nodes whose names begin with a match are skipped.
        kwargs: Further options, each with its default:

            - ``awqlite_alpha_step`` (0.1): step of the candidates for AWQ's alpha.
            - ``awqclip_alpha_step`` (0.05), ``awqclip_alpha_min`` (0.5): step of the clip ratios, and the least one.
            - ``awqclip_bsz_col`` (None): ignored, all columns are searched at once.
            - ``gather_quantize_axis`` (None: tables of Gather stay float), ``gather_block_size`` (32).
            - ``layers_8bit`` (none): names, comma-separated or in a list. Nodes that have such a name between the dots
              or slashes of their own get INT8 per channel.
            - ``precision_info`` (None): bits by weight name, 4 for all others; 8 bits are per channel. ModelOpt's
              records are read too: ``{"precision": 8, "block_size": 128, "axis": 0}``.
            - ``use_column_major`` (False): store codes as [c_out, c_in], with a Transpose.

    Returns:
        The quantized model, opset 21 or newer, its weights in memory.

    Raises:
        JaxqError: a parameter is unknown or out of range, calibration data is missing or does not fit the model, or the
            model has no weight that can be quantized.

    Source: NVIDIA ModelOpt's ``onnx.quantization.int4.quantize``.

    Example:
        >>> from jaxq.embedded import build_model
        >>> import onnx_ir as ir
        >>> quantized = quantize(ir.to_proto(build_model()), "rtn_dq", block_size=64)
        >>> sum(t.data_type == onnx.TensorProto.INT4 for t in quantized.graph.initializer)
        28
    """
    del use_external_data_format
    options = read_options(kwargs)
    method, form = find_method_and_form(calibration_method, options.use_column_major)
    needs_data = find_method(method).needs_data
    if needs_data and calibration_data_reader is None:
        raise JaxqError(
            f"{calibration_method!r} needs calibration data: give calibration_data_reader=<an iterable of input "
            "dictionaries>, or calibration_method='rtn_dq', which needs none"
        )
    dtype = "uint4" if use_zero_point else "int4"
    fmt = make_format(dtype, 128 if block_size is None else check_integer("block_size", block_size))
    gather, providers = table_format(options, dtype), read_providers(calibration_eps)
    with tempfile.TemporaryDirectory(prefix="jaxq-") as folder, _errors_in_the_callers_terms(Path(folder)):
        source = _source(onnx_path, Path(folder))
        model = load_model(source)
        batches = read_batches(calibration_data_reader, model) if needs_data else []
        job = Job(
            source=source,
            target=Path(folder) / "quantized.onnx",
            method=method_spec(method, fmt, options),
            form=find_form(form),
            exclude=tuple(excluded_nodes(model.graph, nodes_to_exclude)),
            cache=Path(folder) / "moments",
            external_above=PROTOBUF_LIMIT,
            rules=tuple(format_rules(model, options, fmt)),
            gather=gather,
            providers=providers,
            kernels=False,
        )
        check_job(job, bool(batches))
        quantize_model(job, batches)
        return onnx.load(job.target)


def quantize_rtn(
    onnx_model: onnx.ModelProto,
    gemm_io_type: int | None = None,
    block_size: int | None = None,
    dq_only: bool = False,
    nodes_to_exclude: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """The model with 4-bit weights, rounded to nearest: scales ``max|block| / 7`` along input channels, ties to even.

    Weights of MatMul and Gemm are quantized and kernels of Conv are skipped, as in `quantize`. ModelOpt 0.47 has no
    ``gemm_io_type``: ``quantize_rtn(model, 128)`` and ``quantize_rtn(model, 128, True)`` are read in its order, as
    block size and ``dq_only``.

    Args:
        onnx_model: The model; it does not change.
        gemm_io_type: Type of the scales and products, ``onnx.TensorProto.FLOAT`` or ``FLOAT16``: that of the model's
            weights. None takes the type of the weights.
        block_size: Rows a block, 2 or more, or -1 per channel.
        dq_only: Store codes, read by DequantizeLinear; else float weights, between QuantizeLinear and DequantizeLinear.
        nodes_to_exclude: Regular expressions; nodes whose names begin with a match are skipped.

    Returns:
        The quantized model.

    Raises:
        JaxqError: a parameter is out of range, or the model has weights of another type, or none.

    Source: NVIDIA ModelOpt's ``onnx.quantization.int4.quantize_rtn``. Its page says max / 8; its code divides by 7.

    Example:
        >>> from jaxq.embedded import build_model
        >>> quantized = quantize_rtn(ir.to_proto(build_model()), onnx.TensorProto.FLOAT, 32, dq_only=True)
        >>> "DequantizeLinear" in {node.op_type for node in quantized.graph.node}
        True
    """
    if not isinstance(onnx_model, onnx.ModelProto):
        raise JaxqError(f"onnx_model is of type {type(onnx_model).__name__}: give an onnx.ModelProto")
    # ModelOpt 0.47 passes the block size second and dq_only third.
    if block_size is None or isinstance(block_size, bool):
        gemm_io_type, block_size, dq_only = None, gemm_io_type, dq_only if block_size is None else block_size
    if block_size is None:
        raise JaxqError("block_size is missing: give the rows a block, as in quantize_rtn(model, 128)")
    if gemm_io_type is not None:
        _check_weight_types(onnx_model, gemm_io_type)
    method = "rtn_dq" if dq_only else "rtn"
    return quantize(onnx_model, method, block_size=block_size, nodes_to_exclude=nodes_to_exclude)


def _check_weight_types(onnx_model: onnx.ModelProto, gemm_io_type: int) -> None:
    """Raise a JaxqError unless the weights of the model have the type of that number."""
    if not isinstance(gemm_io_type, int) or gemm_io_type not in _FLOATS:
        raise JaxqError(f"gemm_io_type is {gemm_io_type!r}: give onnx.TensorProto.FLOAT or onnx.TensorProto.FLOAT16")
    weight_types = _weight_types(onnx_model)
    if weight_types - {gemm_io_type}:
        names = " and ".join(_FLOATS[number] for number in sorted(weight_types))
        raise JaxqError(
            f"gemm_io_type is {_FLOATS[gemm_io_type]}, and the model's weights have type {names}: "
            "convert the model first"
        )


def _weight_types(proto: onnx.ModelProto) -> set[int]:
    """Types, as ONNX's numbers, of the weights that can be quantized; kernels of Conv do not count."""
    model = ir.from_proto(proto)
    prepare(model)
    sites, _ = find_sites(model.graph)
    return {int(site.weight.dtype) for site in sites if site.weight.dtype is not None and not site.kernel}


@contextmanager
def _errors_in_the_callers_terms(folder: Path) -> Iterator[None]:
    """Errors name the given model, not its copy in a temporary folder, and parameters of `quantize`."""
    try:
        yield
    except JaxqError as error:
        text = re.sub(rf"(model file|model) '{re.escape(str(folder))}[^']*'", "the model given", str(error))
        for option, parameter in _PARAMETERS.items():
            text = text.replace(option, parameter)
        raise JaxqError(text) from error


def _source(model: str | os.PathLike[str] | onnx.ModelProto, folder: Path) -> Path:
    """Path of the model; a model in memory is first saved to the folder."""
    if not isinstance(model, onnx.ModelProto):
        if not isinstance(model, str | os.PathLike):
            raise JaxqError(f"onnx_path is of type {type(model).__name__}: give a path or an onnx.ModelProto")
        return Path(model)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise JaxqError(
                f"weight {tensor.name!r} is stored in a file beside the model, and a ModelProto has no path to it: "
                "give the model's path, or load its external data first"
            )
    path = folder / "source.onnx"
    save_model(ir.from_proto(model), path, PROTOBUF_LIMIT)
    return path
