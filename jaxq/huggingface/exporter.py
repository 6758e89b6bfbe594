"""The script that exports a Hugging Face folder to an ONNX file, with torch and transformers.

`jaxq.huggingface.export` runs it in a separate process. It imports nothing from jaxq, and jaxq does not import it, so
that torch is never loaded into the process that quantizes, and the export's memory is free when it ends.

Two exporters are used. onnxruntime-genai's model builder exports language models as onnxruntime serves them: fused
attention with a cache, packed q, k and v, and a genai_config.json. Its releases follow those of onnxruntime and
transformers. ``torch.onnx.export`` exports all other models, and language models that the builder does not support.
optimum-onnx is not used: its release does not support transformers 4.58 and newer.
"""

import inspect
import os
import runpy
import sys
import threading
from pathlib import Path
from typing import Any

OPSET = 21


def export(source: Path, target: Path, dtype: str) -> None:
    """Write ``target/model.onnx`` and its external data.

    Args:
        source: Folder with config.json and weights.
        target: Folder for the model; it has to exist.
        dtype: "float32" or "float16".
    """
    from transformers import AutoConfig  # pyright: ignore[reportMissingImports]

    config = AutoConfig.from_pretrained(source)
    architecture = (config.architectures or [""])[0]
    if not (architecture.endswith("ForCausalLM") and build(source, target, dtype)):
        trace(architecture, config, source, target, dtype)


def build(source: Path, target: Path, dtype: str) -> bool:
    """Export with onnxruntime-genai's model builder; returns False if the builder does not support the architecture."""
    precision = {"float32": "fp32", "float16": "fp16"}[dtype]
    paths = ["-i", str(source), "-o", str(target), "-c", str(target / ".cache")]
    sys.argv = ["builder", *paths, "-p", precision, "-e", "cpu", "--extra_options", "hf_token=false"]
    try:
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")  # its documented interface
    except NotImplementedError:
        return False
    return True


def trace(architecture: str, config: Any, source: Path, target: Path, dtype: str) -> None:
    """Export with ``torch.onnx.export``: no cache, dynamic batch and sequence axes."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    model_class = getattr(transformers, architecture, None) or transformers.AutoModel
    model = model_class.from_pretrained(source, dtype=getattr(torch, dtype)).eval()
    if config.is_encoder_decoder:
        sys.exit(f"{architecture} has an encoder and a decoder: export each by itself, and use model=onnx")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    examples = _examples(model, config, dtype)
    if not examples:
        sys.exit(f"{architecture} takes neither input_ids nor pixel_values: export it yourself, and use model=onnx")
    with torch.no_grad():
        outputs = [key for key, value in model(**examples).items() if isinstance(value, torch.Tensor)]
    dynamic_axes = {key: {0: "batch", 1: "sequence"} if key != "pixel_values" else {0: "batch"} for key in examples}
    program = torch.onnx.export(
        model,
        kwargs=examples,
        dynamo=True,
        dynamic_shapes=dynamic_axes,
        input_names=list(examples),
        output_names=outputs,
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    _name_weights(program.model)
    program.save(target / "model.onnx", external_data=True)


def _examples(model: Any, config: Any, dtype: str) -> dict[str, Any]:
    """Inputs for the trace, by name; none for a model that is neither of text nor of images."""
    import torch  # pyright: ignore[reportMissingImports]

    accepted = inspect.signature(model.forward).parameters
    if model.main_input_name == "input_ids":
        ids = torch.arange(14).reshape(2, 7) % config.get_text_config().vocab_size
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(config, "type_vocab_size", 0) > 0:  # a model without types may accept the input and ignore it
            inputs["token_type_ids"] = torch.zeros_like(ids)
    elif model.main_input_name == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (2, getattr(config, "num_channels", 3), height, width)
        inputs = {"pixel_values": torch.linspace(-1, 1, 2 * shape[1] * height * width).reshape(shape)}
        inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, dtype))
    else:
        return {}
    return {key: value for key, value in inputs.items() if key in accepted}


def _name_weights(model: Any) -> None:
    """Name transposed weights after their module: "encoder.layer.0.query.weight" in place of torch's "val_12"."""
    names = {value.name for value in model.graph.initializers.values()}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        if node.op_type not in ("MatMul", "Gemm") or not scopes or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        modules = [scope.strip("'\" ") for scope in scopes.strip("[]").split(",")]
        if weight is None or not weight.is_initializer() or not weight.name.startswith("val_") or len(modules) < 2:
            continue
        name = f"{modules[-2]}.weight" if modules[-2] else "weight"
        if name in names:  # such as that of a tied embedding, which stays with the table
            name = f"{name}.transposed"
        if name in names:
            continue
        del model.graph.initializers[weight.name]
        weight.name = name
        model.graph.initializers[name] = weight
        names.add(name)


def save_tokenizer(source: Path, target: Path) -> None:
    """Write ``tokenizer.json`` for a folder with a tokenizer in another format; a folder without one is skipped."""
    if (source / "tokenizer.json").is_file() or (target / "tokenizer.json").is_file():
        return
    from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]

    try:
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
    except Exception:  # models of images have no tokenizer; transformers raises many types of errors for that
        return


def end_with_parent() -> None:
    """End this process when its parent ends or is killed: the parent's end of the standard input closes then.

    Standard input itself becomes empty, so that code that asks the user a question does not wait for an answer.
    """
    pipe, empty = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)

    def watch() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    os.environ["HF_HUB_OFFLINE"] = "1"  # all files are in the folder
    source_folder, target_folder, float_type = sys.argv[1:]
    export(Path(source_folder), Path(target_folder), float_type)
    save_tokenizer(Path(source_folder), Path(target_folder))
