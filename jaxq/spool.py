"""Values that wait on disk between windows, so that a calibration can be taken up again where it was stopped."""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from jaxq.batches import Batch
from jaxq.store import hash_files, write_whole


class Spool:
    """What later windows read of each batch: the model's inputs, and files for computed values.

    Args:
        folder: Where the files lie. What a run that was stopped left there is used by `resume`.
        batches: The model's inputs.
        key: Whose work it is: what lies in the folder with another key is not used.
    """

    def __init__(self, folder: Path, batches: Sequence[Batch], key: str = "") -> None:
        self.folder, self.batches, self.key = folder, batches, key
        self._names: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, batch: int, name: str) -> np.ndarray:
        """A value, memory-mapped where it lies on disk."""
        feeds = self.batches[batch].feeds
        return feeds[name] if name in feeds else np.load(self._path(batch, name), mmap_mode="r")

    def put(self, batch: int, name: str, array: np.ndarray) -> None:
        """Keeps a value."""
        self._names.add(name)
        np.save(self._path(batch, name), array)

    def commit(self, plan: str, done: int, needed: Collection[str]) -> None:
        """Notes that the first ``done`` windows of a plan are finished, and drops what no later one reads."""
        gone = self._names - set(needed)
        self._names -= gone
        kept = {name: hash_files(self._files(name)) for name in sorted(self._names)}
        write_whole(self._state(), json.dumps({"key": self.key, "plan": plan, "done": done, "values": kept}).encode())
        for path in (path for name in gone for path in self._files(name)):
            path.unlink(missing_ok=True)

    def resume(self, plan: str) -> int:
        """How many windows of the plan are finished and have left their values whole; 0 if any is not as it was."""
        try:
            state = json.loads(self._state().read_text())
            same = (state["key"], state["plan"]) == (self.key, plan)
            whole = same and all(hash_files(self._files(n)) == h for n, h in state["values"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0
        if not whole:
            return 0
        self._names = set(state["values"])
        return int(state["done"])

    def _state(self) -> Path:
        return self.folder / "state.json"

    def _files(self, name: str) -> list[Path]:
        return [self._path(batch, name) for batch in range(len(self.batches))]

    def _path(self, batch: int, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}-{batch}.npy"
