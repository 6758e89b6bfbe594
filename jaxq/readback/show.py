"""What `jaxq inspect` prints: the weights of an ONNX file, or of each model in a folder."""

import json
from pathlib import Path

from rich.console import Console

from jaxq.files.model_folder import list_models
from jaxq.readback.inspection import inspect_model, to_json
from jaxq.readback.inspection_table import print_inspection


def show_models(path: Path, every: bool, as_json: bool) -> None:
    """Prints which weights of a file are quantized, and how; of a folder, of all its models.

    Args:
        path: An ONNX file, or a folder; see `jaxq.files.model_folder.list_models`.
        every: Print each weight too, not only the totals.
        as_json: Print JSON instead: an object for a file, a list of objects for a folder.

    Raises:
        JaxqError: a file cannot be read, is not an ONNX model, or the folder has none.
    """
    inspections = [inspect_model(file) for file in list_models(path)]
    if as_json:
        objects = [to_json(inspection) for inspection in inspections]
        print(json.dumps(objects if path.is_dir() else objects[0], indent=1), flush=True)
        return
    for inspection in inspections:
        print_inspection(inspection, Console(), every)
