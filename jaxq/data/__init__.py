"""Calibration and evaluation samples: token ids from text, datasets and token files."""

from jaxq.data.text_datasets import TextDataset, dataset_text
from jaxq.data.texts import load_tokenizer, read_text, token_rows
from jaxq.data.token_files import token_file_samples

__all__ = [
    "TextDataset", "dataset_text", "load_tokenizer", "read_text", "token_file_samples", "token_rows",
]  # fmt: skip
