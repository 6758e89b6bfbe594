"""Moments on disk, found again by the content of what they were computed from; and the hashes for that."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from jaxq.errors import JaxqError
from jaxq.statistics import Moments

_VERSION = "1"  # changes when the meaning of stored moments does


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


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    beside.write_bytes(content)
    beside.replace(path)


class MomentStore:
    """A folder with one file for each activation's moments. Files appear whole or not at all.

    Args:
        root: Folder of all stores.
        model_hash, data_hash: What the moments belong to.
    """

    def __init__(self, root: Path, model_hash: str, data_hash: str) -> None:
        self.folder = root / f"moments-{_VERSION}-{model_hash[:16]}-{data_hash[:16]}"

    def __contains__(self, name: str) -> bool:
        try:
            with safe_open(self._path(name), "np"):  # reads the header, and compares it with the file's size
                return True
        except (OSError, SafetensorError):
            return False

    def put(self, name: str, moments: Moments) -> None:
        """Stores the moments of the activation ``name``.

        Raises:
            JaxqError: the folder cannot be written, or the disk is full.
        """
        path = self._path(name)
        beside = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}")
        tensors = {"h": np.asarray(moments.h), "a": np.asarray(moments.a), "tokens": np.asarray(moments.tokens)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, {"activation": name})
            beside.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise JaxqError(
                f"cannot write to the cache {str(self.folder)!r}: {error}; give another cache_dir"
            ) from error

    def get(self, name: str) -> Moments:
        """The moments of the activation ``name``.

        Raises:
            KeyError: they are not here, or their file is damaged.
        """
        try:
            tensors = load_file(self._path(name))
        except (OSError, SafetensorError) as error:
            raise KeyError(name) from error
        return Moments(jnp.asarray(tensors["h"]), jnp.asarray(tensors["a"]), jnp.asarray(tensors["tokens"]))

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"
