"""Hugging Face models: export them to ONNX once, in a process of its own."""

from jaxq.huggingface.export import Export, export_model

__all__ = [
    "Export", "export_model",
]  # fmt: skip
