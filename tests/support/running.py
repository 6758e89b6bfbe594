"""Write models, run them in onnxruntime, quantize them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import WeightFormat
from jaxq.forms.registry import find_form
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.job import Budget, Gather, Job, Rule
from jaxq.pipeline.outcome import Outcome
from jaxq.pipeline.quantize import quantize_model
from jaxq.runtime.batches import Batch

RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
OPSET_23 = pytest.mark.skipif(RUNTIME < (1, 23), reason="this onnxruntime cannot load opset 23")


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx", *, external: bool = False) -> Path:
    """Writes the model, its tensors in ``<name>.weights`` if ``external``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving external data empties the model that is saved
    onnx.save(copy, path, save_as_external_data=external, location=f"{name}.weights", size_threshold=0)
    return path


def run(
    model: Path | onnx.ModelProto, feeds: Mapping[str, np.ndarray], *outputs: str, optimize: bool = True
) -> list[np.ndarray]:
    """Outputs of a model in onnxruntime, products with 4-bit weights in float32; any of its values can be asked for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if outputs:
        model = onnx.load(model) if isinstance(model, Path) else model
        have = {value.name for value in model.graph.output}
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in have)
        model = copy
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(list(outputs) or None, dict(feeds))]


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all subgraphs."""
    yield graph
    for each in graph.node:
        for attribute in each.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Those of subgraphs included."""
    return {t.name: numpy_helper.to_array(t) for graph in graphs(model.graph) for t in graph.initializer}


def with_weights(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model with other values, of the old type and shape, in some initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in [tensor for graph in graphs(copy.graph) for tensor in graph.initializer]:
        if tensor.name in weights:
            old = numpy_helper.to_array(tensor)
            new = weights[tensor.name].astype(old.dtype)
            assert new.shape == old.shape
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return copy


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """How far ``a`` is from ``b``, for the whole of it."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(b, np.float64)))


def quantize(
    source: Path,
    target: Path,
    method: str = "rtn_dq",
    batches: Sequence[Batch] = (),
    fmt: WeightFormat | None = None,
    form: str = "dq",
    exclude: tuple[str, ...] = (),
    cache: Path | None = None,
    window_bytes: int = 64 << 20,
    external_above: int = 1 << 30,
    rules: tuple[Rule, ...] = (),
    gather: Gather | None = None,
    accuracy_level: int = 1,
    bits: float | None = None,
    block_scales: bool = False,
    ridge: float = 4096.0,
) -> Outcome:
    """`quantize_model`, in blocks of 32, with few candidates, exact products and a cache of its own."""
    fmt = fmt or IntegerFormat(block_size=32)
    integers = fmt if isinstance(fmt, IntegerFormat) else IntegerFormat(32)
    spec = MethodSpec(method, fmt, alpha_step=0.25, clip_step=0.25, block_scales=block_scales, ridge=ridge)
    with tempfile.TemporaryDirectory(prefix="jaxq-") as own:
        job = Job(
            source,
            target,
            spec,
            find_form(form, accuracy_level),
            exclude,
            cache or Path(own),
            window_bytes,
            external_above,
            rules,
            gather,
            budget=None if bits is None else Budget(bits, integers.full_range, integers.scale_dtype),
        )
        return quantize_model(job, batches)
