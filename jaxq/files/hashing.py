"""Hashes of files and arrays, which name stored work so that later runs find it."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import xxhash


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def hash_arrays(arrays: Iterable[Mapping[str, np.ndarray]]) -> str:
    """SHA-256 over named arrays: names, types, shapes and values."""
    total = hashlib.sha256()
    for group in arrays:
        for name in sorted(group):
            array = np.asarray(group[name], order="C")
            total.update(f"{name} {array.dtype} {array.shape}\n".encode())
            total.update(array.tobytes())
    return total.hexdigest()


def digest(arrays: Mapping[str, np.ndarray], *words: str) -> str:
    """A fast hash of named arrays and words, which shows that a file was damaged or exchanged."""
    total = xxhash.xxh3_128()
    for word in words:
        total.update(f"{len(word)} {word}\n".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
