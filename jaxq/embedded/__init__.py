"""The embedded model: a small trained language model that ships with jaxq, its tokenizer, and text to measure it on.

The model is a Llama-like decoder of 4 M parameters (hidden size 256, 4 layers, 4 heads on 2 key/value heads, FFN size
688). experiments/embedded/train.py trained it on the documentation that ships with every Python. It needs no download,
and its perplexity on held-out text is that of a trained model, so that a first run shows real losses of quantization.
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
