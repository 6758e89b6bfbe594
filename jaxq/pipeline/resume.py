"""Finished work of a run, stored on disk until its file is written, so that a stopped run can resume.

`jaxq.calibration.capture.finished_windows` decides at which window the calibration continues.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxq.errors import JaxqError
from jaxq.files.atomic import write_whole, written_whole
from jaxq.files.hashing import digest
from jaxq.formats.registry import WeightFormat
from jaxq.forms.stored_weight import Read, StoredWeight
from jaxq.graph.sites import Group
from jaxq.search.result import GroupResult, Layer

_DTYPES = {name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn")}


@dataclass(frozen=True)
class RunState:
    """The folder with the finished work of one run.

    Attributes:
        folder: Contains ``windows/`` of the calibration and ``weights/``, one file for each sibling group.
        key: Hash of the command and of all that its work depends on. Files under another key are not used.
        resumes: The folder holds work of a stopped run that can be used.
    """

    folder: Path
    key: str
    resumes: bool

    @property
    def windows(self) -> Path:
        """For `jaxq.calibration.capture.Calibration`."""
        return self.folder / "windows"

    def planned(self, missing: Sequence[str]) -> list[str]:
        """Keys of the activations that the run began to calibrate; at the first call, those that are missing now."""
        path = self.folder / "planned.json"
        try:
            begun = json.loads(path.read_text())
            if isinstance(begun, list) and all(isinstance(name, str) for name in begun):
                return begun
        except (OSError, ValueError):
            pass  # not begun, or damaged: the run plans anew, and windows of another plan are not used
        write_whole(path, json.dumps(list(missing)).encode())
        return list(missing)


@contextlib.contextmanager
def run_state(
    root: Path, identity: str, content: Mapping[str, str], notify: Callable[[str], None]
) -> Iterator[RunState]:
    """The state of a run; removed when the block ends without an error.

    Args:
        root: Folder of all states.
        identity: Identifies the command; each command has a folder of its own.
        content: Everything else that the work depends on, by name: hashes of model and data, versions. State with
            other content is stale: it is removed, with a notice.
        notify: Called with a sentence if a stopped run left state.

    Raises:
        JaxqError: the folder cannot be written.
    """
    command = hashlib.sha256(identity.encode()).hexdigest()
    folder = root / f"run-{command[:24]}"
    content = {**content, "command": command}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    try:
        # The lock lies outside the folder and is never removed: a lock file that is removed while another process
        # opens it would guard nothing.
        (root / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / "locks" / folder.name, timeout=0)
        lock.acquire()
        folder.mkdir(exist_ok=True)
    except Timeout:
        notify("another process runs the same command: this run uses none of its work, and cannot be resumed")
        with tempfile.TemporaryDirectory(prefix="jaxq-") as temporary:
            yield RunState(Path(temporary), key, resumes=False)
        return
    except OSError as error:
        raise JaxqError(f"cannot write to the cache {str(root)!r}: {error}; give another cache_dir") from error
    try:
        yield RunState(folder, key, _fits(folder, content, notify))
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _fits(folder: Path, content: Mapping[str, str], notify: Callable[[str], None]) -> bool:
    """True if the folder has work that can be used. Otherwise the folder is emptied for a new run."""
    path = folder / "content.json"
    leftovers = list(folder.iterdir())
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError):
        old = None
    if old == content:
        notify("this command was stopped before: the run resumes its work")
        return True
    if leftovers:
        other = [name for name in content if not isinstance(old, dict) or old.get(name) != content[name]]
        what = f"is of another {' and another '.join(other)}" if isinstance(old, dict) else "cannot be read"
        notify(f"this command was stopped before, but its work {what}: the run begins anew")
        for p in leftovers:
            shutil.rmtree(p) if p.is_dir() else p.unlink()
    write_whole(path, json.dumps(dict(content)).encode())
    return False


class ResultStore:
    """A folder with the quantized weights of each sibling group. Files appear whole or not at all.

    Args:
        folder: The folder.
        key: Identifies the run; files under another key are not used.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def put(self, result: GroupResult) -> GroupResult:
        """Stores a result, and returns the same one with weights that lie on disk.

        Raises:
            JaxqError: the folder cannot be written, or the disk is full.
        """
        arrays = {"s": np.asarray(result.s)}
        for i, weight in enumerate(result.weights):
            reads = {"codes": weight.codes, "s": weight.s, "zp": weight.zp, "s2": weight.s2}
            arrays |= {f"{i}.{name}": read() for name, read in reads.items() if read is not None}
        record = {
            "layers": [asdict(layer) for layer in result.layers],
            "scaled": result.scaled,
            "tokens": result.tokens,
            "formats": [str(weight.fmt) for weight in result.weights],
            "arrays": {name: [str(a.dtype), a.shape] for name, a in arrays.items()},
        }
        raw = {name: np.ascontiguousarray(a).reshape(-1).view(np.uint8) for name, a in arrays.items()}
        text = json.dumps(record)
        path = self._path(result.group)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as beside:
                save_file(raw, beside, {"record": text, "hash": digest(raw, text, self.key)})
        except (OSError, SafetensorError) as error:
            raise JaxqError(
                f"cannot write to the cache {str(self.folder)!r}: {error}; give another cache_dir"
            ) from error
        return self._result(result.group, [w.fmt for w in result.weights], path, record)

    def get(self, group: Group, formats: Sequence[WeightFormat]) -> GroupResult | None:
        """The stored result of a group; None if there is none, it is damaged, or it has other formats."""
        path = self._path(group)
        try:
            with safe_open(path, "np") as file:
                meta = file.metadata()
                raw = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if digest(raw, meta["record"], self.key) != meta["hash"]:
                return None
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        record = json.loads(meta["record"])
        dtypes = [record["arrays"][f"{i}.s"][0] for i in range(len(formats))]
        stored_formats = [fmt.of_weights(dtype) for fmt, dtype in zip(formats, dtypes, strict=True)]
        if record.get("formats") != [str(fmt) for fmt in stored_formats]:
            return None
        return self._result(group, stored_formats, path, record)

    def _result(
        self, group: Group, formats: Sequence[WeightFormat], path: Path, record: Mapping[str, object]
    ) -> GroupResult:
        arrays = record["arrays"]
        assert isinstance(arrays, dict)
        layers = record["layers"]
        assert isinstance(layers, list)
        weights = []
        for i, (site, fmt) in enumerate(zip(group.sites, formats, strict=True)):
            codes, s, zp, s2 = (_reader(path, f"{i}.{name}", arrays) for name in ("codes", "s", "zp", "s2"))
            assert codes is not None and s is not None
            weights.append(StoredWeight(codes, s, zp, s2, (site.c_in, site.columns), fmt))
        s = _reader(path, "s", arrays)
        assert s is not None
        return GroupResult(
            group,
            tuple(weights),
            tuple(Layer(**{**layer, "nodes": tuple(layer["nodes"])}) for layer in layers),
            s(),
            bool(record["scaled"]),
            int(str(record["tokens"])),
        )

    def _path(self, group: Group) -> Path:
        return self.folder / f"{hashlib.sha256(group.sites[0].name.encode()).hexdigest()[:32]}.safetensors"


def _reader(path: Path, name: str, arrays: Mapping[str, tuple[str, Sequence[int]]]) -> Read | None:
    if name not in arrays:
        return None
    dtype, shape = arrays[name]
    return partial(_read, path, name, _DTYPES.get(dtype) or np.dtype(dtype), tuple(shape))


def _read(path: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    with safe_open(path, "np") as file:
        return file.get_tensor(name).view(dtype).reshape(shape)
