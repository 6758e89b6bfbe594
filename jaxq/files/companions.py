"""Files beside a model that belong to it: configuration, tokenizer, chat templates, models that it runs with."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxq.errors import JaxqError
from jaxq.files.model_file import data_files, data_path, load_model

GENAI = "genai_config.json"
_MARKS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.txt")
_TEXTS = {"", ".json", ".jinja", ".model", ".txt", ".md", ".tiktoken", ".py", ".yaml", ".yml", ".spm", ".bpe", ".vocab"}
_TEXTS |= {".onnx_adapter"}
_TEMPLATES = "additional_chat_templates"
_OWN = ("report.json", "layers.csv")
_LIMIT = 128 << 20


@dataclass(frozen=True)
class Companions:
    """What lies beside a model.

    Attributes:
        folder: Where they lie.
        files: Those that belong to it, relative to the folder, sorted.
        left: Names of others, models and folders among them.
        config: The text of ``genai_config.json`` that fits the copy, if it is to differ from the original.
        notes: Sentences that a reader of the report should not miss.
    """

    folder: Path
    files: tuple[Path, ...]
    left: tuple[str, ...]
    config: str | None
    notes: tuple[str, ...]


def find_companions(source: Path, target_name: str) -> Companions:
    """The files beside a model that belong to it.

    A folder is a model's own if it holds ``genai_config.json``, a tokenizer, or a ``config.json`` with "model_type" or
    "architectures"; of any other folder nothing is taken. Of a model's folder these belong: every file of at most
    128 MiB that is text by its suffix (.json, .jinja, .txt, .model, ...; LICENSE), chat templates in
    ``additional_chat_templates``, and whatever ``genai_config.json`` names, however large, with its external data.
    Hidden files, the model and its data never do. A model in a folder "onnx" belongs to the folder above.

    Args:
        source: The model's file.
        target_name: Name of the copy that the configuration has to name.

    Raises:
        JaxqError: ``genai_config.json`` cannot be read.
    """
    folder = _model_folder(source)
    if folder is None:
        return Companions(source.parent, (), (), None, ())
    parts = (source, source.parent, *data_files(source, load_model(source)))
    own = {Path(os.path.abspath(part)) for part in parts}
    config = _read_json(folder / GENAI) if (folder / GENAI).is_file() else {}
    text, notes = _renamed(config, source.name, target_name)
    taken = {Path(target_name), data_path(Path(target_name)), *(Path(name) for name in _OWN)}
    named = {p for p in _named(config, folder) if folder / p not in own and p not in taken}
    beside = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p not in own)
    texts = {Path(p.name) for p in beside if p.is_file() and p.suffix in _TEXTS and p.stat().st_size <= _LIMIT}
    templates = {p.relative_to(folder) for p in (folder / _TEMPLATES).glob("*.jinja")}
    files = {p for p in named | texts | templates if p not in taken}
    left = [p.name + "/" * p.is_dir() for p in beside if not any(f.parts[0] == p.name for f in files)]
    return Companions(folder, tuple(sorted(files)), tuple(n for n in left if n not in _OWN), text, tuple(notes))


def copy_companions(found: Companions, target: Path) -> list[str]:
    """Copies the files that belong to a model into the folder of its quantized copy.

    ``genai_config.json`` names the copy afterwards and is otherwise the same. Files that lie there already are kept.

    Args:
        found: What `find_companions` found.
        target: The folder.

    Returns:
        Sentences for the report: what was copied, and what was left.

    Raises:
        JaxqError: the folder cannot be written.
    """
    copied, kept = [], []
    try:
        for file in found.files:
            fresh = found.config.encode() if str(file) == GENAI and found.config is not None else None
            done = _copy(found.folder / file, target / file, fresh)
            (copied if done else kept).append(str(file))
    except OSError as error:
        raise JaxqError(f"cannot write {error.filename or str(target)!r}: {error.strerror}") from error
    notes = [f"copied beside the model: {_listed(copied)}"] if copied else []
    if kept:
        notes.append(f"the output folder had other files of these names, which were kept: {_listed(kept)}")
    if found.left:
        notes.append(f"not copied from the model's folder: {_listed(found.left)}")
    return [*notes, *found.notes]


def _model_folder(source: Path) -> Path | None:
    """The folder that is the model's own, if one is, as an absolute path."""
    parent = Path(os.path.abspath(source.parent))  # links stay: files lie beside them, not beside what they lead to
    for folder in (parent, *((parent.parent,) if parent.name == "onnx" else ())):
        if any((folder / name).is_file() for name in (GENAI, *_MARKS)):
            return folder
        if (folder / "config.json").is_file():
            try:
                config = json.loads((folder / "config.json").read_text(encoding="utf8"))
            except (OSError, ValueError):
                continue
            if isinstance(config, dict) and ("model_type" in config or "architectures" in config):
                return folder
    return None


def _read_json(path: Path) -> dict[str, object]:
    try:
        config = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise JaxqError(f"{str(path)!r} beside the model cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise JaxqError(f"{str(path)!r} beside the model is no JSON object: mend it, or move it elsewhere")
    return config


def _renamed(config: dict[str, object], old: str, new: str) -> tuple[str | None, list[str]]:
    """The configuration's text with the copy's name for the model's, if that changes it; and what to note."""
    if not config:
        return None, []
    places = list(_places(config))
    ours = [place for place in places if place["filename"] == old]
    notes = []
    if not ours:
        model = config.get("model")
        decoder = model.get("decoder") if isinstance(model, dict) else None
        if not isinstance(decoder, dict) or "filename" not in decoder:
            return None, [f"{GENAI} names no {old}: it was copied as it is"]
        notes = [f"{GENAI} names {decoder['filename']!r} and not {old!r}: its copy names {new!r}"]
        ours = [decoder]
    if any(place["filename"] == new for place in places if place not in ours):
        return None, [f"{GENAI} has {new!r} as another of its models: name the copy yourself, and mend {GENAI}"]
    if all(place["filename"] == new for place in ours):
        return None, notes
    for place in ours:
        place["filename"] = new
    return json.dumps(config, indent=4, ensure_ascii=False), notes


def _places(value: object) -> Iterator[dict[str, object]]:
    """Objects of a configuration that name a file."""
    if isinstance(value, dict):
        if isinstance(value.get("filename"), str):
            yield value
        for inner in value.values():
            yield from _places(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _places(inner)


def _named(config: Mapping[str, object], folder: Path) -> Iterator[Path]:
    """Files within the folder that a configuration names, and the external data of models among them."""
    for text in _strings(config):
        path = Path(text)
        inside = text not in ("", ".") and len(text) < 256 and not path.is_absolute() and ".." not in path.parts
        if not inside or "\0" in text or not (folder / path).is_file():
            continue
        yield path
        if path.suffix == ".onnx":
            yield from (data.relative_to(folder) for data in data_files(folder / path, load_model(folder / path)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _copy(source: Path, target: Path, fresh: bytes | None) -> bool:
    """Copies a file, or writes ``fresh`` in its place; False where another file lies there already."""
    if target.exists():
        same = target.resolve() == source.resolve() and fresh is None
        return same or target.read_bytes() == (source.read_bytes() if fresh is None else fresh)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    if fresh is None:
        shutil.copyfile(source, partial)
    else:
        partial.write_bytes(fresh)
    partial.replace(target)
    return True


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
