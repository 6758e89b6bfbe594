"""Moments on disk, found again by the content of what they were computed from; and the hashes for that."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxq.errors import JaxqError
from jaxq.statistics import Moments

_VERSION = "2"  # changes when the meaning of stored moments does


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


def digest(arrays: Mapping[str, np.ndarray], *more: str) -> str:
    """A fast hash of named arrays and words, by which a file that was damaged or exchanged is recognised."""
    total = xxhash.xxh3_128()
    for word in more:
        total.update(f"{len(word)} {word}\n".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to that takes another's place when the block ends; after an error, or Ctrl-C, it is removed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    with written_whole(path) as beside:
        beside.write_bytes(content)


class MomentStore:
    """A folder with one file for each activation's moments. Files appear whole or not at all.

    Args:
        root: Folder of all stores.
        model_hash, data_hash: What the moments belong to.
    """

    def __init__(self, root: Path, model_hash: str, data_hash: str) -> None:
        self.folder = root / f"moments-{_VERSION}-{model_hash[:16]}-{data_hash[:16]}"
        self._whole: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether they are here as they were written: their hash is compared, once."""
        if name not in self._whole:
            try:
                self.get(name)
            except KeyError:
                return False
        return True

    def put(self, name: str, moments: Moments) -> None:
        """Stores the moments of the activation ``name``.

        Raises:
            JaxqError: the folder cannot be written, or the disk is full.
        """
        tensors = {"h": np.asarray(moments.h), "a": np.asarray(moments.a), "tokens": np.asarray(moments.tokens)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path(name)) as beside:
                save_file(tensors, beside, {"activation": name, "hash": digest(tensors, name)})
            self._whole.add(name)
        except (OSError, SafetensorError) as error:
            raise JaxqError(
                f"cannot write to the cache {str(self.folder)!r}: {error}; give another cache_dir"
            ) from error

    def get(self, name: str) -> Moments:
        """The moments of the activation ``name``.

        Raises:
            KeyError: they are not here, or their file is damaged.
        """
        try:
            with safe_open(self._path(name), "np") as file:
                tensors = {key: file.get_tensor(key) for key in ("h", "a", "tokens")}
                held = (file.metadata() or {}).get("hash")
        except (OSError, SafetensorError) as error:
            raise KeyError(name) from error
        if name not in self._whole:
            if held != digest(tensors, name):
                raise KeyError(name)
            self._whole.add(name)
        return Moments(jnp.asarray(tensors["h"]), jnp.asarray(tensors["a"]), jnp.asarray(tensors["tokens"]))

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"
