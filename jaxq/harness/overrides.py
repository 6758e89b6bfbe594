"""Words of a command line as overrides of the configuration: values are quoted, so that any path is taken as it is."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from jaxq.data.texts import TEXT_FILES
from jaxq.errors import JaxqError
from jaxq.files.model_folder import find_model, is_huggingface

PATH_KEYS = frozenset(
    {
        *(f"{part}.{key}" for part in ("calib", "eval") for key in ("tokens", "text", "dataset", "tokenizer")),
        "model.path",
        "model.id",
        "cache_dir",
        "hydra.run.dir",
    }
)
"""Options whose value is a path or a name, in which commas, brackets and spaces mean nothing else."""

_IMPLIED_MODELS = {"model.path": "onnx", "model.id": "hf"}
"""Choices of model by the option that only they read."""

LIST_KEYS = ("method.exclude", "mixed.int8")
"""Options that are lists of patterns."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""Names of repositories of Hugging Face: "owner/name", or "name" alone."""

_HOLDOUT = "0.2"
_HELD_OUT_KEYS = tuple(f"eval.{key}" for key in ("tokens", "text", "dataset", "source", "split", "holdout_fraction"))
_DATASET_FILES = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tsv")
_LOCAL = (".onnx", ".npz", *TEXT_FILES, *_DATASET_FILES)
"""Endings of files: no repository has such a name."""


def quoted(text: str) -> str:
    r"""A text as a value in Hydra's grammar, which yields this very text.

    Example:
        >>> quoted("it's, [a]=b")
        "'it\\'s, [a]=b'"
    """
    text = re.sub(r"(\\*)\$\{", lambda m: f"{m[1] * 2}\\${{", text)  # else OmegaConf would look up what follows
    return f"'{re.sub(_BEFORE_QUOTE, _escaped, text)}'"


def written(text: str) -> str:
    """A text as a value in Hydra's grammar, in quotes only where it means something else without."""
    try:
        plain = OverridesParser.create().parse_override(f"key={text}").value() == text and "${" not in text
    except HydraException:
        plain = False
    return text if plain else quoted(text)


_BEFORE_QUOTE = re.compile(r"(\\*)('|\Z)")
"""Backslashes mean themselves in Hydra's quotes, but before a quote."""


def _escaped(match: re.Match[str]) -> str:
    return match[1] * 2 + ("\\'" if match[2] else "")


def model_overrides(model: str) -> list[str]:
    """The overrides that name a model.

    Args:
        model: An ONNX file; a folder of onnxruntime-genai, optimum or Hugging Face; or a repository of Hugging Face.

    Raises:
        JaxqError: it is none of these.
    """
    path = Path(model)
    if path.is_dir() and is_huggingface(path) and not _has_onnx(path):
        return ["model=hf", f"model.id={written(model)}"]
    if path.exists():
        return ["model=onnx", f"model.path={written(str(find_model(path)))}"]
    if looks_like_repository(model):
        return ["model=hf", f"model.id={written(model)}"]
    raise JaxqError(
        f"model {model!r} does not exist: give an .onnx file, a folder with a model, or a Hugging Face repository"
    )


def with_model(overrides: Sequence[str]) -> list[str]:
    """The overrides, with the choice of model that ``model.path`` or ``model.id`` implies where none is made.

    Raises:
        JaxqError: both are given, and no choice.

    Example:
        >>> with_model(["model.path=model.onnx"]), with_model(["model=hf", "model.id=owner/name"])
        (['model=onnx', 'model.path=model.onnx'], ['model=hf', 'model.id=owner/name'])
    """
    keys = {key.lstrip("+"): value for key, value in _by_key(overrides).items()}
    chosen = {"model", "model.name"} & keys.keys()
    implied = [name for key, name in _IMPLIED_MODELS.items() if keys.get(key, "null") not in ("", "null")]
    if chosen or not implied:
        return list(overrides)
    if len(implied) > 1:
        raise JaxqError("model.path and model.id are given: leave out one of them, since a run has one model")
    return [f"model={implied[0]}", *overrides]


def looks_like_repository(name: str) -> bool:
    """True for "owner/name", or "name" alone, where neither is a file or a folder here."""
    path = Path(name)
    local = path.exists() or path.suffix.lower() in _LOCAL or (len(path.parts) > 1 and path.parent.is_dir())
    return REPOSITORY.fullmatch(name) is not None and not local


def output_overrides(output: str | None, model: str) -> list[str]:
    """The overrides for a run's folder.

    Args:
        output: The folder; None for one below outputs/.
        model: The model, which must not lie in the folder.

    Raises:
        JaxqError: it is a file, has the name of one, or is the model's own folder.
    """
    if output is None:
        return []
    folder = Path(output)
    if folder.suffix == ".onnx" and not folder.is_dir():
        raise JaxqError(
            f"-o is {output!r}: give a folder, as in -o {str(folder.with_suffix(''))!r}; it gets model.onnx"
        )
    if folder.exists() and not folder.is_dir():
        raise JaxqError(f"-o is {output!r}, which is a file: give a folder")
    if "${" in output:  # Hydra resolves a run's folder twice
        raise JaxqError(f"-o is {output!r}: give a folder whose name has no '${{'")
    source = Path(model)
    own = source if source.is_dir() else source.parent
    if source.exists() and folder.resolve() == own.resolve() and (source.is_dir() or source.name == "model.onnx"):
        raise JaxqError(f"-o is {output!r}, the model's own folder, which is never changed: give another folder")
    return [f"hydra.run.dir={written(output)}"]


def data_overrides(data: str | None, settings: Sequence[str]) -> list[str]:
    """The overrides for calibration data; a fifth of a text is held out to measure accuracy, if nothing else is named.

    Args:
        data: An .npz file, a text file or a folder of such, or a dataset (repository, folder or file); None for none.
        settings: The other overrides.

    Raises:
        JaxqError: it is none of these.
    """
    if data is None:
        return []
    keys, (kind, value) = _by_key(settings), _data_option(data)
    overrides = [f"calib.{kind}={value}"]
    if kind == "tokens":
        return overrides
    empty = any(keys.get(f"{part}.samples") == "0" for part in ("calib", "eval"))
    if not empty and not any(keys.get(key) for key in _HELD_OUT_KEYS):
        overrides.append(f"eval.holdout_fraction={_HOLDOUT}")
        if "eval.length" not in keys:
            overrides.append("eval.length=${calib.length}")  # held-out samples are samples of the same text
    return overrides


def held_out_overrides(data: str | None) -> list[str]:
    """The overrides for data of an evaluation alone.

    Args:
        data: As for `data_overrides`.

    Raises:
        JaxqError: it is none of these.
    """
    return [] if data is None else [f"eval.{'='.join(_data_option(data))}"]


def _data_option(data: str) -> tuple[str, str]:
    """The option that data is given with, and its value."""
    path, is_repository = Path(data), looks_like_repository(data)
    if not path.exists() and not is_repository:
        raise JaxqError(f"data {data!r} does not exist: give an .npz file, texts, or a dataset")
    if path.suffix == ".npz":
        return "tokens", written(data)
    is_dataset = is_repository or path.suffix in _DATASET_FILES or _holds_dataset(path)
    return "dataset" if is_dataset else "text", written(data)


def _by_key(settings: Sequence[str]) -> dict[str, str]:
    parts = [setting.partition("=") for setting in settings]
    return {key: value for key, _, value in parts}


def plain_settings(settings: Iterable[str]) -> list[str]:
    """Overrides as a user wrote them, with quotes around paths that need some, and single patterns as lists of one."""
    return [_plain_setting(setting) for setting in settings]


def list_of_patterns(setting: str) -> str:
    """An override whose value is a list: patterns without brackets are put into some.

    Example:
        >>> list_of_patterns("method.exclude=*lm_head*")
        "method.exclude=['*lm_head*']"
    """
    key, equals, value = setting.partition("=")
    if key not in LIST_KEYS or not value or value == "null" or value.startswith(("[", "$")):
        return setting
    patterns = [value] if value[0] in "'\"" else [quoted(pattern.strip()) for pattern in value.split(",")]
    return f"{key}{equals}[{','.join(patterns)}]"


def _plain_setting(setting: str) -> str:
    key, equals, value = setting.partition("=")
    if key not in PATH_KEYS or value == "null" or not value or value[0] in "'\"":
        return list_of_patterns(setting)
    if not Path(value).exists() and (value[0] == "[" or "${" in value):
        return setting
    return f"{key}{equals}{written(value)}"


def _has_onnx(folder: Path) -> bool:
    return any(next(place.glob("*.onnx"), None) for place in (folder, folder / "onnx"))


def _holds_dataset(path: Path) -> bool:
    """True for a folder with the files of a dataset, and no text."""
    if not path.is_dir():
        return False
    endings = {file.suffix.lower() for file in _files(path)}
    return bool(endings & set(_DATASET_FILES)) and not endings & set(TEXT_FILES)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())
