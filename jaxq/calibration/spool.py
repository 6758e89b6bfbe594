"""Values that wait on disk between windows, so that a stopped calibration can resume."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxq.files.atomic import write_whole
from jaxq.files.hashing import digest
from jaxq.runtime.batches import Batch


class Spool:
    """Values of each batch that later windows read: the model's inputs in memory, computed values in files.

    A value is hashed once, in memory, when it is stored. Only `resume` reads files back and compares their hashes.

    Args:
        folder: Where the files lie; `resume` uses files that a stopped run left there.
        batches: The model's inputs.
        key: Identifies the run; files that lie in the folder under another key are not used.
    """

    def __init__(self, folder: Path, batches: Sequence[Batch], key: str = "") -> None:
        self.folder, self.batches, self.key = folder, batches, key
        self._hashes: dict[str, dict[int, str]] = {}  # of each value, by batch
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: str) -> bool:
        """True for inputs of the model, and for values that were stored and not dropped."""
        return name in self.batches[0].feeds or name in self._hashes

    def get(self, batch: int, name: str) -> np.ndarray:
        """A value, memory-mapped where it lies on disk."""
        feeds = self.batches[batch].feeds
        return feeds[name] if name in feeds else np.load(self._path(batch, name), mmap_mode="r")

    def put(self, batch: int, name: str, array: np.ndarray) -> None:
        """Stores a value."""
        self._hashes.setdefault(name, {})[batch] = _hash(name, batch, array)
        np.save(self._path(batch, name), array)

    def commit(self, plan: str, done: int, needed: Collection[str]) -> None:
        """Records that the first ``done`` windows of a plan are finished, and drops values that no later one needs."""
        unneeded = self._hashes.keys() - set(needed)
        paths = [self._path(batch, name) for name in unneeded for batch in self._hashes.pop(name)]
        kept = {name: [hashes[i] for i in range(len(self.batches))] for name, hashes in sorted(self._hashes.items())}
        write_whole(self._state(), json.dumps({"key": self.key, "plan": plan, "done": done, "values": kept}).encode())
        # Only now: a run that is killed before the record is written still needs them.
        for path in paths:
            path.unlink(missing_ok=True)

    def resume(self, plan: str) -> int:
        """The number of finished windows of the plan; 0 if any of their values is missing or damaged."""
        try:
            state = json.loads(self._state().read_text())
            if (state["key"], state["plan"]) != (self.key, plan):
                return 0
            values = {name: dict(enumerate(hashes)) for name, hashes in state["values"].items()}
            whole = all(self._is_whole(name, hashes) for name, hashes in values.items())
            done = int(state["done"])
        except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
            return 0
        if not whole:
            return 0
        self._hashes = values
        return done

    def forget(self) -> None:
        """Discards the values that `resume` accepted: the run begins anew."""
        self._hashes = {}

    def _is_whole(self, name: str, hashes: Mapping[int, str]) -> bool:
        """True if the files of a value, one for each batch, have the hashes with which they were stored."""
        read = (np.load(self._path(batch, name), mmap_mode="r") for batch in range(len(self.batches)))
        return list(hashes.values()) == [_hash(name, batch, array) for batch, array in enumerate(read)]

    def _state(self) -> Path:
        return self.folder / "state.json"

    def _path(self, batch: int, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}-{batch}.npy"


def _hash(name: str, batch: int, array: np.ndarray) -> str:
    return digest({name: array}, str(batch))
