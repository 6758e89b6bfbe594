"""Hugging Face models: exported to ONNX once, in a separate process, and reused from a cache."""

from jaxq.huggingface.export import Export, export_model

__all__ = [
    "Export", "export_model",
]  # fmt: skip
