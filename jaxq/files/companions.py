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
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.txt")
_TEXTS = {"", ".json", ".jinja", ".model", ".txt", ".md", ".tiktoken", ".py", ".yaml", ".yml", ".spm", ".bpe", ".vocab"}
_TEXTS |= {".onnx_adapter"}
_TEMPLATES = "additional_chat_templates"
_REPORTS = ("report.json", "layers.csv")
_MAX_TEXT_BYTES = 128 << 20


@dataclass(frozen=True)
class Companions:
    """The files beside a model, and those of them that belong to it.

    Attributes:
        folder: The folder that they are in.
        files: Those that belong to it, relative to the folder, sorted.
        left: Names of the other files, models and folders, which do not belong to it.
        config: The text of ``genai_config.json`` for the copy, where it differs from the original; else None.
        notes: Sentences for the report.
    """

    folder: Path
    files: tuple[Path, ...]
    left: tuple[str, ...]
    config: str | None
    notes: tuple[str, ...]


def find_companions(source: Path, target_name: str) -> Companions:
    """The files beside a model that belong to it.

    A folder is a model's own if it holds ``genai_config.json``, a tokenizer, or a ``config.json`` with "model_type" or
    "architectures"; no file of any other folder belongs to it. In a model's own folder these belong: every file of at
    most 128 MiB that is text by its suffix (.json, .jinja, .txt, .model, ...; LICENSE), chat templates in
    ``additional_chat_templates``, and all that ``genai_config.json`` names, however large, with its external data.
    Hidden files, the model and its data never belong. A model in a folder "onnx" belongs to the folder above.

    Args:
        source: The model's file.
        target_name: File name of the quantized copy, for the configuration.

    Raises:
        JaxqError: ``genai_config.json`` cannot be read.
    """
    folder = _model_folder(source)
    if folder is None:
        return Companions(source.parent, (), (), None, ())
    model_files = {Path(os.path.abspath(p)) for p in (source, source.parent, *data_files(source, load_model(source)))}
    config = _read_json(folder / GENAI) if (folder / GENAI).is_file() else {}
    text, notes = _renamed(config, source.name, target_name)
    written = {Path(target_name), data_path(Path(target_name)), *(Path(name) for name in _REPORTS)}
    named = {p for p in _named(config, folder) if folder / p not in model_files and p not in written}
    beside = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p not in model_files)
    texts = {Path(p.name) for p in beside if p.is_file() and p.suffix in _TEXTS and p.stat().st_size <= _MAX_TEXT_BYTES}
    templates = {p.relative_to(folder) for p in (folder / _TEMPLATES).glob("*.jinja")}
    files = {p for p in named | texts | templates if p not in written}
    left = [p.name + "/" * p.is_dir() for p in beside if not any(f.parts[0] == p.name for f in files)]
    return Companions(folder, tuple(sorted(files)), tuple(n for n in left if n not in _REPORTS), text, tuple(notes))


def copy_companions(companions: Companions, target: Path) -> list[str]:
    """Copies the files that belong to a model into the folder of its quantized copy.

    ``genai_config.json`` names the copy afterwards and is otherwise the same. Other files of
    these names in the folder are kept.

    Args:
        companions: From `find_companions`.
        target: The folder.

    Returns:
        Sentences for the report: the files that were copied, and those that were not.

    Raises:
        JaxqError: the folder cannot be written.
    """
    copied, kept = [], []
    try:
        for file in companions.files:
            text = companions.config.encode() if str(file) == GENAI and companions.config is not None else None
            is_copied = _copy(companions.folder / file, target / file, text)
            (copied if is_copied else kept).append(str(file))
    except OSError as error:
        raise JaxqError(f"cannot write {error.filename or str(target)!r}: {error.strerror}") from error
    notes = [f"copied beside the model: {_listed(copied)}"] if copied else []
    if kept:
        notes.append(f"the output folder had other files of these names, which were kept: {_listed(kept)}")
    if companions.left:
        notes.append(f"not copied from the model's folder: {_listed(companions.left)}")
    return [*notes, *companions.notes]


def _model_folder(source: Path) -> Path | None:
    """The folder that is the model's own, if one is, as an absolute path."""
    parent = Path(os.path.abspath(source.parent))  # links are kept: files are beside them, not beside their targets
    for folder in (parent, *((parent.parent,) if parent.name == "onnx" else ())):
        if any((folder / name).is_file() for name in (GENAI, *_TOKENIZER_FILES)):
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
        raise JaxqError(f"{str(path)!r} beside the model is not a JSON object: correct it, or move it elsewhere")
    return config


def _renamed(config: dict[str, object], old: str, new: str) -> tuple[str | None, list[str]]:
    """The configuration's text with the copy's name in place of the model's (None: unchanged), and notes on it."""
    if not config:
        return None, []
    places = list(_places(config))
    of_model = [place for place in places if place["filename"] == old]
    notes = []
    if not of_model:
        model = config.get("model")
        decoder = model.get("decoder") if isinstance(model, dict) else None
        if not isinstance(decoder, dict) or "filename" not in decoder:
            return None, [f"{GENAI} names no {old}: it was copied as it is"]
        notes = [f"{GENAI} names {decoder['filename']!r} and not {old!r}: its copy names {new!r}"]
        of_model = [decoder]
    if any(place["filename"] == new for place in places if place not in of_model):
        return None, [f"{GENAI} has {new!r} as another of its models: give the copy another name, or correct {GENAI}"]
    if all(place["filename"] == new for place in of_model):
        return None, notes
    for place in of_model:
        place["filename"] = new
    return json.dumps(config, indent=4, ensure_ascii=False), notes


def _places(value: object) -> Iterator[dict[str, object]]:
    """The objects of a configuration that name a file."""
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


def _copy(source: Path, target: Path, text: bytes | None) -> bool:
    """Copies a file, or writes ``text`` in its place; False where another file of that name exists."""
    if target.exists():
        same = target.resolve() == source.resolve() and text is None
        return same or target.read_bytes() == (source.read_bytes() if text is None else text)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    if text is None:
        shutil.copyfile(source, partial)
    else:
        partial.write_bytes(text)
    partial.replace(target)
    return True


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
