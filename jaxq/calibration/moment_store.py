"""Moments on disk, found again by the content of what they were computed from."""

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxq.errors import JaxqError
from jaxq.files.atomic import written_whole
from jaxq.files.hashing import digest
from jaxq.numerics.moments import Moments

_VERSION = "2"  # changes when the meaning of stored moments does


class MomentStore:
    """A folder with one file for each activation's moments. Files appear whole or not at all.

    Args:
        root: Folder of all stores.
        model_hash, data_hash: Hashes of the model and of the data that the moments were computed from.
    """

    def __init__(self, root: Path, model_hash: str, data_hash: str) -> None:
        self.folder = root / f"moments-{_VERSION}-{model_hash[:16]}-{data_hash[:16]}"
        self._whole: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """True if the moments are here, undamaged. Their hash is compared once."""
        if name not in self._whole:
            try:
                self[name]
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

    def __getitem__(self, name: str) -> Moments:
        """The moments of the activation ``name``.

        Raises:
            KeyError: they are not stored, or their file is damaged.
        """
        try:
            with safe_open(self._path(name), "np") as file:
                tensors = {key: file.get_tensor(key) for key in ("h", "a", "tokens")}
                stored_hash = (file.metadata() or {}).get("hash")
        except (OSError, SafetensorError) as error:
            raise KeyError(name) from error
        if name not in self._whole:
            if stored_hash != digest(tensors, name):
                raise KeyError(name)
            self._whole.add(name)
        return Moments(jnp.asarray(tensors["h"]), jnp.asarray(tensors["a"]), jnp.asarray(tensors["tokens"]))

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"
