"""Small language models with random weights, built by onnxruntime-genai's model builder.

    python experiments/genai/make_models.py OUT [llama llama_tied qwen3 gemma2]

Needs the extra ``hf`` (torch on a CPU will do). Writes, for each model, OUT/<name>-hf,
a Hugging Face folder, and OUT/<name>-<precision>, what the builder makes of it for a CPU. The tokenizer is jaxq's own.

The graphs and configurations of llama-fp32, llama_tied-fp32, qwen3-fp32, gemma2-fp32 and llama-fp16, without their
weights, are those in tests/genai/graphs. They are of onnxruntime-genai 0.18, transformers 5.23 and torch 2.15;
llama_tied-fp32 is of transformers 5.24 and torch 2.13. This builder cannot read the Gemma 3 of these transformers.
"""

# pyright: reportMissingImports=false

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import jaxq.embedded

TOKENIZER = Path(jaxq.embedded.__file__).parent / "tokenizer.json"
"""2048 tokens, bytes of Python's documentation."""

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def make_model(name: str, vocabulary: int, seed: int = 0):
    """A transformers model with random weights, large enough that its layers matter.

    Args:
        name: One of `MODELS`.
        vocabulary: Number of token ids.
        seed: Of the weights.
    """
    import torch

    torch.manual_seed(seed)
    model = MODELS[name](vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.ndim == 1 else 4 * parameter.shape[-1] ** -0.5 / 3
            parameter.normal_(float(parameter.ndim == 1 and "gemma" not in name), spread)
    return model.eval()


def _llama(vocabulary: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **SIZES))


def _llama_tied(vocabulary: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **SIZES))


def _qwen3(vocabulary: int):
    """Norms of queries and keys, heads that are wider than hidden size / heads."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, head_dim=32, tie_word_embeddings=False, **SIZES))


def _gemma2(vocabulary: int):
    """Norms with an offset of 1, four a layer, soft caps, a sliding window, tied embeddings that are scaled."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=vocabulary, attn_implementation="eager", **sizes))


MODELS = {
    "llama": _llama,
    "llama_tied": _llama_tied,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
}


def save_huggingface(model, folder: Path, tokenizer: Path = TOKENIZER) -> None:
    """A Hugging Face folder: configuration, weights, tokenizer, settings of generation."""
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    fast.save_pretrained(folder)


def build(source: Path, target: Path, precision: str = "fp32", **options: str) -> None:
    """The builder's model of a Hugging Face folder, for a CPU.

    Args:
        source: The Hugging Face folder.
        target: Where model.onnx, model.onnx.data, genai_config.json and the tokenizer go.
        precision: "fp32", "fp16" or "int4".
        options: The builder's extra options.
    """
    cache = target.parent / "builder-cache"
    extra = [f"{key}={value}" for key, value in {"hf_token": "false", **options}.items()]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target, "-p", precision]
    subprocess.run([*command, "-e", "cpu", "-c", cache, "--extra_options", *extra], check=True)
    shutil.rmtree(cache, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Small language models, built by onnxruntime-genai's model builder.")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    for name in arguments.names:
        folder = arguments.out / f"{name}-hf"
        save_huggingface(make_model(name, vocabulary=2048), folder)
        build(folder, arguments.out / f"{name}-{arguments.precision}", arguments.precision)


if __name__ == "__main__":
    main()
