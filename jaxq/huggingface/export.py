"""Models of Hugging Face: found, exported to ONNX once, and found again by later runs."""

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
"""Types that a model can be exported in."""

_PACKAGES = ("torch", "transformers", "onnxruntime-genai")
_VERSION = "1"  # changes when exports of the same model do
_WEIGHTS = ("*.safetensors", "*.bin")
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations, tokenizers, chat templates
_FOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")  # "1_Pooling": modules of sentence-transformers
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        path: ``model.onnx``, in a folder with the tokenizer and configuration files.
        source: The folder that it was made from.
        exporter: Name and version of what made it.
        seconds: What the export took; None where an earlier run's was found.
    """

    path: Path
    source: Path
    exporter: str
    seconds: float | None

    @property
    def sentence(self) -> str:
        """Where the model comes from, for the report."""
        when = "exported before" if self.seconds is None else f"exported in {self.seconds:.0f} s"
        return f"{when} by {self.exporter} from {self.source}"


def export_model(model_id: str, dtype: str, cache: Path, progress: Progress = silent) -> Export:
    """The ONNX model of a folder or a repository.

    An export is found again by the content of the folder and the exporters' versions. It is written beside its place
    and renamed when it is whole.

    Args:
        model_id: A folder with config.json and weights, or a repository of the Hugging Face hub, as "owner/name". What
            the hub sent before is used where it cannot be reached.
        dtype: "float32" or "float16".
        cache: Folder for exports.
        progress: Told of the export.

    Raises:
        JaxqError: the extra is not installed, there is no such model, or it cannot be exported.
    """
    if dtype not in DTYPES:
        raise JaxqError(f"model.dtype is {dtype!r}: choose {' or '.join(DTYPES)}")
    source = _folder(model_id)
    _check_folder(source, model_id)
    versions = _versions()
    files = _files(source, _WEIGHTS + _BESIDE)
    names = "\n".join(str(file.relative_to(source)) for file in files)
    key = sha256(f"{_VERSION} {dtype} {versions}\n{names}\n{hash_files(files)}".encode()).hexdigest()[:16]
    place, seconds = cache / f"hf-{key}", None
    if not (place / "model.onnx").is_file():
        start = time.perf_counter()
        advance = progress("export", 1)
        _export_to(place, source, model_id, dtype)
        advance()
        seconds = time.perf_counter() - start
    made_by = "onnxruntime-genai" if (place / "genai_config.json").is_file() else "torch"
    return Export(place / "model.onnx", source, f"{made_by} {versions[made_by]}", seconds)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError as error:
            raise JaxqError(
                f"model=hf needs {name}, which is not installed: install jaxq with its extra hf, as in "
                'pip install -e ".[cpu,hf]"'
            ) from error
    return found


def _folder(model_id: str) -> Path:
    """The folder of a model; a repository is fetched first."""
    if Path(model_id).is_dir():
        return Path(model_id).resolve()
    if not _REPO.fullmatch(model_id):
        raise JaxqError(
            f"model.id is {model_id!r}: there is no such folder, and repositories are written owner/name; "
            "give a folder with config.json and weights, or a repository"
        )
    _versions()  # before gigabytes are fetched
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(model_id, allow_patterns=[*_BESIDE, "*.safetensors"])
        if not _files(Path(folder), ("*.safetensors",)):
            folder = snapshot_download(model_id, allow_patterns=[*_BESIDE, "*.bin"])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise JaxqError(
            f"model.id is {model_id!r}: there is no such folder, and the repository cannot be fetched "
            f"({type(error).__name__}); check the name, the network and 'hf auth login', or give a folder"
        ) from error
    return Path(folder)


def _check_folder(source: Path, model_id: str) -> None:
    """Refuses a folder without a configuration or weights."""
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise JaxqError(f"model {model_id!r} has no config.json: give the folder that save_pretrained made") from error
    except (OSError, ValueError) as error:
        raise JaxqError(f"model {model_id!r} has a config.json that cannot be read: {error}") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise JaxqError(f"model {model_id!r} has a config.json without model_type: transformers cannot tell its kind")
    if not _files(source, _WEIGHTS):
        raise JaxqError(f"model {model_id!r} has no weights: a .safetensors or .bin file is needed")


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files of a model and of the folders within it that are known to be a model's, sorted.

    Others are exports, checkpoints, or what runs that were started there have written.
    """
    folders = [folder, *(p for p in folder.iterdir() if _FOLDERS.fullmatch(p.name) and p.is_dir())]
    found = {path for each in folders for pattern in patterns for path in each.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def _export_to(place: Path, source: Path, model_id: str, dtype: str) -> None:
    """Exports into a folder beside the place, which then takes its name."""
    try:
        with _workspace(place.parent) as beside:
            _run_exporter(source, beside, model_id, dtype)
            shutil.rmtree(beside / ".cache", ignore_errors=True)
            for file in _files(source, _BESIDE):
                _copy_beside(file, beside / file.relative_to(source))
            if place.exists() and not (place / "model.onnx").is_file():
                shutil.rmtree(place)  # someone took its files away
            try:
                beside.replace(place)
            except OSError:
                if not (place / "model.onnx").is_file():  # else another run was faster
                    raise
    except OSError as error:
        raise JaxqError(f"cannot write to the cache {str(place.parent)!r}: {error}; give another cache_dir") from error


@contextmanager
def _workspace(cache: Path) -> Iterator[Path]:
    """A folder in the cache that does not outlast its use; those that killed processes left are removed first."""
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with _locked(cache, wait=True):  # nobody takes a folder that is not locked yet for one that was left
            for old in cache.glob(".hf-*"):
                with _locked(old, wait=False) as ours:
                    if ours:
                        shutil.rmtree(old, ignore_errors=True)
            beside = Path(tempfile.mkdtemp(prefix=".hf-", dir=cache))
            held.enter_context(_locked(beside, wait=False))
        try:
            yield beside
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Whether a folder is locked meanwhile; not where another process has it, or the file system knows no locks.

    The system gives a lock back however a process ends; a process id would mean nothing to another machine.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    with ExitStack() as opened:
        locked = True
        try:
            handle = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            locked = False
        yield locked


def _copy_beside(file: Path, copy: Path) -> None:
    """Copies a file that the exporter did not write; indices of weights are of no use."""
    if copy.exists() or file.name.endswith(".index.json"):
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)


def _run_exporter(source: Path, target: Path, model_id: str, dtype: str) -> None:
    """Runs `jaxq.huggingface.exporter` in a process of its own."""
    script = Path(__file__).with_name("exporter.py")
    # -P: jaxq's folder, with an inspect.py of its own, is not where modules are looked for
    command = [sys.executable, "-P", str(script), str(source), str(target), dtype]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    # The child reads from a pipe that nobody writes to: its end is that of this process.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | quiet,
    ) as child:
        assert child.stderr is not None
        try:
            said = child.stderr.read()
            code = child.wait()
        except BaseException:  # as of Ctrl-C
            child.kill()
            raise
    if code == 0 and (target / "model.onnx").is_file():
        return
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if os.environ.get("JAXQ_TRACEBACK") == "1":
        print(said, file=sys.stderr)
    reason = lines[-1] if lines else f"the exporter ended with code {code}"
    raise JaxqError(f"model {model_id!r} cannot be exported: {reason}")
