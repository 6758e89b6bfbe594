"""A Hugging Face folder to an ONNX file: run by `export` in a process of its own, with torch and transformers.

It imports nothing of jaxq, and jaxq does not import it: torch stays out of the process that quantizes, and its memory
is given back when the export is done.

Language models go to onnxruntime-genai's model builder: it makes the form that onnxruntime serves (fused attention with
a cache, packed q, k and v, and a genai_config.json), and its releases follow those of onnxruntime and transformers.
Everything else, and language models that the builder lacks, goes to ``torch.onnx.export``, which is a part of torch.
optimum-onnx was left out: its release takes no transformers from 4.58 on.
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
    """Writes ``target/model.onnx`` and its data.

    Args:
        source: A folder with config.json and weights.
        target: A folder that exists.
        dtype: "float32" or "float16".
    """
    from transformers import AutoConfig  # pyright: ignore[reportMissingImports]

    config = AutoConfig.from_pretrained(source)
    name = (config.architectures or [""])[0]
    if not (name.endswith("ForCausalLM") and build(source, target, dtype)):
        trace(name, config, source, target, dtype)


def build(source: Path, target: Path, dtype: str) -> bool:
    """Exports with onnxruntime-genai's model builder; False where it does not know the architecture."""
    short = {"float32": "fp32", "float16": "fp16"}[dtype]
    places = ["-i", str(source), "-o", str(target), "-c", str(target / ".cache")]
    sys.argv = ["builder", *places, "-p", short, "-e", "cpu", "--extra_options", "hf_token=false"]
    try:
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")  # its documented interface
    except NotImplementedError:
        return False
    return True


def trace(name: str, config: Any, source: Path, target: Path, dtype: str) -> None:
    """Exports with ``torch.onnx.export``, without a cache, with free batch and sequence axes."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    kind = getattr(transformers, name, None) or transformers.AutoModel
    model = kind.from_pretrained(source, dtype=getattr(torch, dtype)).eval()
    if config.is_encoder_decoder:
        sys.exit(f"{name} has an encoder and a decoder: export each by itself, then take model=onnx")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    examples = _examples(model, config, dtype)
    if not examples:
        sys.exit(f"{name} takes neither input_ids nor pixel_values: export it yourself, then take model=onnx")
    with torch.no_grad():
        outputs = [key for key, value in model(**examples).items() if isinstance(value, torch.Tensor)]
    free = {key: {0: "batch", 1: "sequence"} if key != "pixel_values" else {0: "batch"} for key in examples}
    program = torch.onnx.export(
        model,
        kwargs=examples,
        dynamo=True,
        dynamic_shapes=free,
        input_names=list(examples),
        output_names=outputs,
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    _name_weights(program.model)
    program.save(target / "model.onnx", external_data=True)


def _examples(model: Any, config: Any, dtype: str) -> dict[str, Any]:
    """Inputs that the model is traced with."""
    import torch  # pyright: ignore[reportMissingImports]

    accepted = inspect.signature(model.forward).parameters
    if model.main_input_name == "input_ids":
        ids = torch.arange(14).reshape(2, 7) % config.get_text_config().vocab_size
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(config, "type_vocab_size", 0) > 0:  # others take the input, but never the one that texts need
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
    """Names the weights that torch transposed after the module that they are of: "encoder.layer.0.query.weight"."""
    taken = {value.name for value in model.graph.initializers.values()}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        if node.op_type not in ("MatMul", "Gemm") or not scopes or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        path = [part.strip("'\" ") for part in scopes.strip("[]").split(",")]
        if weight is None or not weight.is_initializer() or not weight.name.startswith("val_") or len(path) < 2:
            continue
        name = f"{path[-2]}.weight" if path[-2] else "weight"
        if name in taken:  # such as a tied embedding: the table keeps its name
            name = f"{name}.transposed"
        if name in taken:
            continue
        del model.graph.initializers[weight.name]
        weight.name = name
        model.graph.initializers[name] = weight
        taken.add(name)


def save_tokenizer(source: Path, target: Path) -> None:
    """Writes ``tokenizer.json`` where the folder holds a tokenizer in another form; nothing where it holds none."""
    if (source / "tokenizer.json").is_file() or (target / "tokenizer.json").is_file():
        return
    from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]

    try:
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
    except Exception:  # models of images have none; transformers raises many kinds
        return


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, killed or not: its end of standard input closes then.

    What asks a question on standard input finds none, and does not wait.
    """
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    os.environ["HF_HUB_OFFLINE"] = "1"  # all is in the folder
    folder, made, number = sys.argv[1:]
    export(Path(folder), Path(made), number)
    save_tokenizer(Path(folder), Path(made))
