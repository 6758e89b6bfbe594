"""Values between windows: hashed once, and recognised afterwards."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxq.calibration import spool as module
from jaxq.calibration.spool import Spool
from jaxq.files.hashing import digest
from jaxq.runtime.batches import Batch

VALUES = {
    "floats": np.arange(600, dtype=np.float32).reshape(2, 300),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "turned": np.arange(12, dtype=np.int8).reshape(3, 4).T,
}
BATCHES = [Batch({"x": np.zeros(1)}), Batch({"x": np.ones(1)})]


def filled(folder: Path) -> Spool:
    """Three windows, the first of which leaves all values, and a value of its own that is gone later."""
    spool = Spool(folder, BATCHES, "key")
    for i in range(len(BATCHES)):
        for name, array in VALUES.items():
            spool.put(i, name, array + array.dtype.type(i))
        spool.put(i, "gone", np.ones(5))
    for done in (1, 2, 3):
        spool.commit("plan", done, [*VALUES, "x"] if done > 1 else [*VALUES, "gone"])
    return spool


def test_each_value_is_hashed_once(tmp_path, monkeypatch):
    seen: Counter[str] = Counter()

    def counted(arrays, *more):
        seen.update(name + word for name in arrays for word in more)
        return digest(arrays, *more)

    monkeypatch.setattr(module, "digest", counted)
    filled(tmp_path)
    assert len(seen) == 2 * (len(VALUES) + 1)
    assert set(seen.values()) == {1}


def test_what_is_taken_up_is_what_was_kept(tmp_path):
    filled(tmp_path)
    spool = Spool(tmp_path, BATCHES, "key")
    assert spool.resume("plan") == 3
    for i in range(len(BATCHES)):
        for name, array in VALUES.items():
            np.testing.assert_array_equal(spool.get(i, name), array + array.dtype.type(i), strict=True)
    assert len(list(tmp_path.glob("*.npy"))) == 2 * len(VALUES)
    spool.commit("plan", 4, ["floats"])  # what an earlier process kept goes too
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert Spool(tmp_path, BATCHES, "key").resume("plan") == 4
    assert Spool(tmp_path, BATCHES, "another").resume("plan") == 0
    assert Spool(tmp_path, BATCHES, "key").resume("another") == 0


def edited(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def reshaped(path: Path) -> None:
    np.save(path, np.load(path).reshape(300, 2))


def exchanged(path: Path) -> None:
    """The same value of the other batch."""
    other = path.with_name(path.name.replace("-0.npy", "-1.npy"))
    shutil.copy(other, path)


DAMAGES = {"edited": edited, "cut": cut, "reshaped": reshaped, "exchanged": exchanged, "removed": Path.unlink}
DAMAGES |= {"emptied": lambda path: path.write_bytes(b""), "foreign": lambda path: path.write_text("some text")}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_not_as_it_was_is_noticed(damage: Callable[[Path], None], tmp_path):
    spool = filled(tmp_path)
    damage(spool._path(0, "floats"))
    assert Spool(tmp_path, BATCHES, "key").resume("plan") == 0


@pytest.mark.parametrize("state", ["", "[", "[]", '{"key": "key", "plan": "plan", "values": 3, "done": 1}', "\xff"])
def test_a_state_that_cannot_be_read(state, tmp_path):
    filled(tmp_path)
    (tmp_path / "state.json").write_text(state, encoding="latin-1")
    assert Spool(tmp_path, BATCHES, "key").resume("plan") == 0
