"""From a composed configuration to a task: the model, the files beside it, the data and the job, all checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxq import embedded
from jaxq.embedded import build_model, documents, text_hash
from jaxq.embedded.text import Split
from jaxq.errors import JaxqError
from jaxq.files.companions import Companions, find_companions
from jaxq.files.hashing import hash_files
from jaxq.files.model_file import load_model, save_model
from jaxq.files.model_folder import find_model
from jaxq.harness.config import Config, DataConfig
from jaxq.harness.data import RunData, check_data, has_data, read_data
from jaxq.harness.drawn_text import data_sources, draws_by_default, needs_data, open_drawn_text
from jaxq.harness.make_job import make_job
from jaxq.harness.option_effects import check_options
from jaxq.harness.weight_options import check_weight_options
from jaxq.huggingface.export import export_model
from jaxq.pipeline.job import Job
from jaxq.progress import Progress
from jaxq.runtime.bfloat16 import has_bfloat16
from jaxq.runtime.inputs import read_input_spec

_BFLOAT16 = "onnxruntime has no bfloat16 on a CPU: the accuracy was measured in float32"


@dataclass(frozen=True, eq=False)
class Task:
    """A checked run that has not begun.

    Attributes:
        job: The job of the pipeline.
        data: Batches for calibration and evaluation.
        companions: Files beside the model that belong to it.
        notes: Sentences that a reader of the report should not miss.
    """

    job: Job
    data: RunData
    companions: Companions
    notes: tuple[str, ...]


def open_task(
    config: Config,
    target: Path,
    cache: Path,
    progress: Progress,
    overrides: Sequence[str] = (),
    sweeps: bool = False,
) -> Task:
    """Opens the model and the data that a configuration names; exports a Hugging Face model.

    Args:
        config: The configuration.
        target: Path of the quantized model.
        cache: Folder for exported and built models.
        progress: Shows the export.
        overrides: The overrides that the user gave; those without effect are refused.
        sweeps: The run is one of a sweep.

    Raises:
        JaxqError: options are out of range or contradict each other (checked before any work), or a file is missing or
            cannot be used.
    """
    make_job(config, Path(), Path(), has_data(config) or (draws_by_default(config) and needs_data(config)))
    check_data(config)
    check_options(config, overrides, has_data(config) or draws_by_default(config), sweeps)
    source, origin = _find_source(config, cache, progress)
    companions = find_companions(source, target.name)
    model = load_model(source)
    drawn, on_drawing = open_drawn_text(config, source, cache, progress)
    # Checked before text is drawn, which takes a while.
    will_have_data = has_data(config) or (drawn is not None and draws_by_default(config))
    check_weight_options(make_job(config, source, target, will_have_data), overrides, will_have_data)
    data = read_data(config, source, read_input_spec(model), drawn)
    job = make_job(config, source, target, bool(data.calib))
    methods = [override for override in overrides if override.lstrip("+").startswith("method.")]
    check_options(config, methods, bool(data.calib), sweeps)  # auto is known now
    on_types = [_BFLOAT16] if has_bfloat16(model) else []
    return Task(job, data, companions, (*origin, *on_drawing, *data.notes, *on_types))


def text_hashes(config: Config) -> dict[str, str]:
    """SHA-256 of the documentation that the embedded model reads; the text differs between Python versions."""
    if config.model.name != "embedded":
        return {}
    parts: dict[str, tuple[DataConfig, Split]] = {
        "calibration_text": (config.calib, "calib"),
        "evaluation_text": (config.eval, "eval"),
    }
    return {
        name: text_hash(documents(split))
        for name, (data, split) in parts.items()
        if data.samples and not data_sources(data)
    }


def _find_source(config: Config, cache: Path, progress: Progress) -> tuple[Path, list[str]]:
    """The model's file, and notes on its origin for the report."""
    if config.model.name == "onnx":
        if not config.model.path:
            raise JaxqError("model.path is not given: give the ONNX file, as in model=onnx model.path=model.onnx")
        return find_model(Path(config.model.path)), []
    if config.model.name == "hf":
        if not config.model.id:
            raise JaxqError("model.id is not given: give a folder or a repository, as in model=hf model.id=folder")
        export = export_model(config.model.id, config.model.dtype, cache, progress)
        return export.path, [export.sentence]
    if config.model.name != "embedded":
        raise JaxqError(f"model.name is {config.model.name!r}: choose embedded, onnx or hf")
    weights = Path(embedded.__file__).with_name("weights.safetensors")
    path = cache / f"embedded-{hash_files([weights])[:16]}.onnx"
    if not path.is_file():
        save_model(build_model(), path, external_above=1 << 30)
    return path, []
