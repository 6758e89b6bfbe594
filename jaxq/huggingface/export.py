"""A Hugging Face model as an ONNX file: downloaded where needed, exported once, and reused by later runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jaxq.errors import JaxqError
from jaxq.files.hashing import hash_files
from jaxq.progress import Progress, silent

DTYPES = ("float32", "float16")
"""Float types of exported models."""

_PACKAGES = ("torch", "transformers", "onnxruntime-genai")
_VERSION = "1"  # of the export itself; increase it when exports of the same model change
_WEIGHTS = ("*.safetensors", "*.bin")
_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations, tokenizers, chat templates
_SUBFOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")  # "1_Pooling": modules of sentence-transformers
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        path: ``model.onnx``, in a folder with the tokenizer and configuration files.
        source: Folder of the Hugging Face model.
        exporter: Name and version of the library that exported the model.
        seconds: Duration of the export; None for an export of an earlier run.
    """

    path: Path
    source: Path
    exporter: str
    seconds: float | None

    @property
    def sentence(self) -> str:
        """The model's origin, for the report."""
        when = "exported before" if self.seconds is None else f"exported in {self.seconds:.0f} s"
        return f"{when} by {self.exporter} from {self.source}"


def export_model(model_id: str, dtype: str, cache: Path, progress: Progress = silent) -> Export:
    """The ONNX model of a folder or a repository of the Hugging Face hub.

    The key of an export in the cache is the content of the model's folder and the versions of the exporters. An export
    is written to a temporary folder, which is renamed when it is complete.

    Args:
        model_id: A folder with config.json and weights, or a repository, as "owner/name". Without a connection to the
            hub, an earlier download is used.
        dtype: "float32" or "float16".
        cache: Folder for exports.
        progress: Called at the beginning and the end of an export.

    Raises:
        JaxqError: the extra is not installed, there is no such model, or it cannot be exported.
    """
    if dtype not in DTYPES:
        raise JaxqError(f"model.dtype is {dtype!r}: choose {' or '.join(DTYPES)}")
    source = _folder(model_id)
    _check_folder(source, model_id)
    versions = _versions()
    files = _files(source, _WEIGHTS + _COMPANIONS)
    names = "\n".join(str(file.relative_to(source)) for file in files)
    key = sha256(f"{_VERSION} {dtype} {versions}\n{names}\n{hash_files(files)}".encode()).hexdigest()[:16]
    target, seconds = cache / f"hf-{key}", None
    if not (target / "model.onnx").is_file():
        start = time.perf_counter()
        advance = progress("export", 1)
        _export_to(target, source, model_id, dtype)
        advance()
        seconds = time.perf_counter() - start
    exporter = "onnxruntime-genai" if (target / "genai_config.json").is_file() else "torch"
    return Export(target / "model.onnx", source, f"{exporter} {versions[exporter]}", seconds)


def _versions() -> dict[str, str]:
    """Versions of the libraries that an export needs; raises an error where one is missing."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError as error:
            raise JaxqError(
                f"model=hf needs {name}, which is not installed: install jaxq with its extra hf, as in "
                'pip install -e ".[cpu,hf]"'
            ) from error
    return versions


def _folder(model_id: str) -> Path:
    """The folder of a model; a repository is downloaded first."""
    if Path(model_id).is_dir():
        return Path(model_id).resolve()
    if not _REPO.fullmatch(model_id):
        raise JaxqError(
            f"model.id is {model_id!r}: there is no such folder, and repositories are written owner/name; "
            "give a folder with config.json and weights, or a repository"
        )
    try:
        _versions()  # before gigabytes are downloaded
    except JaxqError as error:
        raise JaxqError(f"there is no file or folder {model_id!r}; as a repository, {error}") from error
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(model_id, allow_patterns=[*_COMPANIONS, "*.safetensors"])
        if not _files(Path(folder), ("*.safetensors",)):
            folder = snapshot_download(model_id, allow_patterns=[*_COMPANIONS, "*.bin"])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise JaxqError(
            f"model.id is {model_id!r}: there is no such folder, and the repository cannot be downloaded "
            f"({type(error).__name__}); check the name, the network and 'hf auth login', or give a folder"
        ) from error
    return Path(folder)


def _check_folder(source: Path, model_id: str) -> None:
    """Raise an error for a folder without a configuration or weights."""
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise JaxqError(f"model {model_id!r} has no config.json: give a folder written by save_pretrained") from error
    except (OSError, ValueError) as error:
        raise JaxqError(f"model {model_id!r} has a config.json that cannot be read: {error}") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise JaxqError(f"model {model_id!r} has a config.json without model_type: transformers needs it")
    if not _files(source, _WEIGHTS):
        raise JaxqError(f"model {model_id!r} has no weights: a .safetensors or .bin file is needed")


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files in a model's folder and in those of its subfolders that belong to the model, sorted.

    Other subfolders are exports, checkpoints, or outputs of runs that were started in the folder.
    """
    subfolders = [path for path in folder.iterdir() if _SUBFOLDERS.fullmatch(path.name) and path.is_dir()]
    matches = {path for parent in (folder, *subfolders) for pattern in patterns for path in parent.glob(pattern)}
    return sorted(path for path in matches if path.is_file())


def _export_to(target: Path, source: Path, model_id: str, dtype: str) -> None:
    """Export to a temporary folder, and rename the folder to ``target``."""
    try:
        with _workspace(target.parent) as workspace:
            _run_exporter(source, workspace, model_id, dtype)
            shutil.rmtree(workspace / ".cache", ignore_errors=True)
            for file in _files(source, _COMPANIONS):
                _copy_companion(file, workspace / file.relative_to(source))
            if target.exists() and not (target / "model.onnx").is_file():
                shutil.rmtree(target)  # an export whose model was deleted
            try:
                workspace.replace(target)
            except OSError:
                if not (target / "model.onnx").is_file():  # else another run wrote the same export first
                    raise
    except OSError as error:
        raise JaxqError(f"cannot write to the cache {str(target.parent)!r}: {error}; give another cache_dir") from error


@contextmanager
def _workspace(cache: Path) -> Iterator[Path]:
    """A temporary folder in the cache; folders that killed processes left there are removed first."""
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        # The cache's lock: no other process removes the new folder in the moment before it is locked itself.
        with _locked(cache, wait=True):
            for folder in cache.glob(".hf-*"):
                with _locked(folder, wait=False) as abandoned:
                    if abandoned:
                        shutil.rmtree(folder, ignore_errors=True)
            workspace = Path(tempfile.mkdtemp(prefix=".hf-", dir=cache))
            locks.enter_context(_locked(workspace, wait=False))
        try:
            yield workspace
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a folder; yields False if another process has the lock, or the file system has no locks.

    The system releases a lock however a process ends. A process id in a file would mean nothing on another machine that
    shares the cache.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    with ExitStack() as stack:
        locked = True
        try:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            locked = False
        yield locked


def _copy_companion(file: Path, copy: Path) -> None:
    """Copy a file that the exporter did not write; indices of weight files are skipped."""
    if copy.exists() or file.name.endswith(".index.json"):
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)


def _run_exporter(source: Path, target: Path, model_id: str, dtype: str) -> None:
    """Run `jaxq.huggingface.exporter` in a separate process."""
    script = Path(__file__).with_name("exporter.py")
    # -P: no module is imported from the script's own folder, where a name could hide a library's.
    command = [sys.executable, "-P", str(script), str(source), str(target), dtype]
    variables = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    # The child waits on a pipe that nothing is written to: the pipe closes when this process ends.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | variables,
    ) as child:
        assert child.stderr is not None
        try:
            messages = child.stderr.read()
            code = child.wait()
        except BaseException:  # such as Ctrl-C
            child.kill()
            raise
    if code == 0 and (target / "model.onnx").is_file():
        return
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    if os.environ.get("JAXQ_TRACEBACK") == "1":
        print(messages, file=sys.stderr)
    reason = lines[-1] if lines else f"the exporter ended with code {code}"
    raise JaxqError(f"model {model_id!r} cannot be exported: {reason}")
