"""The embedded model: a small trained language model that ships with jaxq, its tokenizer and text to measure it on.

A Llama-like decoder of 4 M parameters (hidden 256, 4 layers, 4 heads on 2 key/value heads, ffn 688), trained by
experiments/embedded/train.py on the documentation that every Python carries. It needs no download, and its held-out
perplexity means something, so a run of the harness on a bare machine shows what a quantization costs.
"""

from jaxq.embedded.build import build_model, write_model
from jaxq.embedded.text import Document, documents, text_hash
from jaxq.embedded.tokens import encode, load_tokenizer, windows
from jaxq.embedded.weights import ModelConfig, load_weights

__all__ = [
    "Document",
    "ModelConfig",
    "build_model",
    "documents",
    "encode",
    "load_tokenizer",
    "load_weights",
    "text_hash",
    "windows",
    "write_model",
]
