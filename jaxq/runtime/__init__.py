"""onnxruntime and its inputs: sessions, batches, caches of language models, bfloat16 as float32."""

from jaxq.runtime.batches import Batch, check_feeds, hash_batches
from jaxq.runtime.bfloat16 import has_bfloat16
from jaxq.runtime.inputs import InputSpec, read_input_spec, to_batches
from jaxq.runtime.session import run, session

__all__ = [
    "Batch", "InputSpec", "check_feeds", "has_bfloat16", "hash_batches", "read_input_spec", "run", "session",
    "to_batches",
]  # fmt: skip
