"""Model files and the files beside them: read without their weights, written completely or not at all, hashed."""

from jaxq.files.atomic import write_whole, written_whole
from jaxq.files.companions import Companions, copy_companions, find_companions
from jaxq.files.hashing import digest, hash_arrays, hash_files
from jaxq.files.model_file import PROTOBUF_LIMIT, hash_model, load_model, save_model

__all__ = [
    "PROTOBUF_LIMIT",
    "Companions",
    "copy_companions",
    "digest",
    "find_companions",
    "hash_arrays",
    "hash_files",
    "hash_model",
    "load_model",
    "save_model",
    "write_whole",
    "written_whole",
]  # fmt: skip
