"""``jaxq run`` and ``python -m jaxq.run``: Hydra's command line, after a look at words that Hydra would not explain."""

import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxq.errors import JaxqError
from jaxq.harness.command import execute
from jaxq.harness.config import option_names
from jaxq.harness.config_reference import GROUPS, group_choices
from jaxq.harness.failures import exit_with_sentence
from jaxq.harness.flags import FLAGS, FLAGS_WITH_VALUE
from jaxq.harness.help_text import run_help
from jaxq.harness.overrides import looks_like_repository, model_overrides, plain_settings, with_model
from jaxq.version import __version__

_SWEEP = ("-m", "--multirun")
_OUTPUTS = ("o", "out", "output", "outputs", "output_dir", "output_path", "out_dir", "save", "save_dir")
_SYNONYMS = {
    "bits": "dtype", "num_bits": "dtype", "precision": "dtype", "algorithm": "method", "algo": "method",
    "group_size": "block_size", "exclude_layers": "exclude", "calibration_data": "text", "dataset": "dataset",
}  # fmt: skip
"""Words of other tools for options of jaxq."""

_FLAGS_OF_QUANTIZE = ("--data", "--output", "--preset")

_MODELS = ("i", "in", "input", "model", "model_path", "onnx", "onnx_path", "path")


def run(arguments: Sequence[str]) -> None:
    """Runs a command of Hydra's door; exits with code 2 and one sentence on bad input.

    Args:
        arguments: Words after the name of the program.
    """
    if {"--help", "-h"} & set(arguments):
        exit_with_sentence(lambda: print(run_help()))
        return
    if list(arguments) == ["--version"]:
        print(f"jaxq {__version__}")
        return
    exit_with_sentence(lambda: _execute(arguments))


def _execute(arguments: Sequence[str]) -> None:
    sys.argv = [sys.argv[0], *understood(arguments)]  # where Hydra reads them
    execute()


def understood(arguments: Sequence[str]) -> list[str]:
    """The words as Hydra is to read them: flags first, since Hydra refuses them between overrides.

    Raises:
        JaxqError: a word is no override and no flag of Hydra; the error says what to write instead.
    """
    flags, overrides = list[str](), list[str]()
    sweeps = any(word in _SWEEP for word in arguments)
    rest = iter(range(len(arguments)))
    for i in rest:
        word = arguments[i]
        if word.startswith("-"):
            _check_flag(arguments, i)
            flags.append(word)
            if word in FLAGS_WITH_VALUE and i + 1 < len(arguments):
                flags.append(arguments[next(rest)])
        elif "=" not in word and not word.startswith("~"):
            raise JaxqError(_no_override(arguments, i))
        else:
            _check_key(arguments, i)
            overrides += [word] if sweeps else plain_settings([word])
    return [*flags, *with_model(overrides)]


def _check_flag(arguments: Sequence[str], i: int) -> None:
    """Raises an error for a flag that Hydra lacks."""
    flag, _, value = arguments[i].partition("=")
    if flag in (*FLAGS_WITH_VALUE, *FLAGS):
        return
    raise JaxqError(flag_sentence(arguments, i, value))


def flag_sentence(arguments: Sequence[str], i: int, value: str = "", command: str = "quantize") -> str:
    """What to write instead of a flag that does not exist.

    Args:
        arguments: The words of the command.
        i: Index of the flag.
        value: Its value where the flag has one of its own, as in ``--model=x``; else the next word is taken.
        command: The command that takes a model.
    """
    flag = arguments[i].partition("=")[0]
    name, used = flag.lstrip("-").replace("-", "_"), 1
    if not value and i + 1 < len(arguments) and not arguments[i + 1].startswith("-"):
        value, used = arguments[i + 1], 2
    others = [*arguments[:i], *arguments[i + used :]]
    if name in _MODELS:
        written = shlex.join(["jaxq", command, value or "MODEL", *others])
        return f"there is no flag {flag}: a model is given without one, as in {written}"
    if command != "quantize":
        return f"there is no flag {flag}: jaxq {command} --help shows what can be given"
    if name in _OUTPUTS:
        return f"there is no flag {flag}: jaxq quantize takes -o FOLDER, and jaxq run takes hydra.run.dir=FOLDER"
    if flag in _SWEEP:
        return f"{flag} sweeps over several values, which jaxq run does: jaxq run -m method=rtn_dq,best"
    if key := _option_for(name):
        return f"there is no flag {flag}: options are written as key=value, here {key}={_value_of(key, value)}"
    if close := difflib.get_close_matches(flag, _FLAGS_OF_QUANTIZE, n=1):
        return f"there is no flag {flag}: did you mean {close[0]}?"
    return f"there is no flag {flag}: jaxq --help and jaxq run --help show what can be given"


def _option_for(name: str) -> str | None:
    """The option that a word of a flag, or of another tool, stands for."""
    name = _SYNONYMS.get(name, name)
    keys = [key for key in option_names() if name in (key.replace(".", "_"), key.rpartition(".")[2])]
    return min(keys, key=lambda key: key.count("."), default=None)


def _value_of(key: str, value: str) -> str:
    """A value as it is written for an option: bits as the dtype of integers."""
    return shlex.quote(f"int{value}" if key == "dtype" and value.isdigit() else value or "VALUE")


def _no_override(arguments: Sequence[str], i: int) -> str:
    """What to write instead of a word without "="."""
    word = arguments[i]
    if Path(word).exists() or word.endswith(".onnx") or "/" in word:
        others = [*arguments[:i], *arguments[i + 1 :]]
        return f"{word!r} is not written as key=value: to quantize a model, write {_quantize(word, others)}"
    for group in GROUPS:
        if word in group_choices(group):
            return f"{word!r} is not written as key=value: write {group}={word}"
    return f"{word!r} is not written as key=value, as in method=best: jaxq run --help shows all keys"


def _check_key(arguments: Sequence[str], i: int) -> None:
    """Raises an error for ``model=<path>`` and for ``output=<path>``."""
    key, _, value = arguments[i].partition("=")
    others = [*arguments[:i], *arguments[i + 1 :]]
    if key == "model" and value not in group_choices("model") and _is_model(value):
        named = model_overrides(value) if Path(value).exists() else ["model=onnx", f"model.path={value}"]
        raise JaxqError(f"model={value}: a path is given as {shlex.join(named)}, or as in {_quantize(value, others)}")
    if key in _SYNONYMS and (other := _option_for(key)):
        raise JaxqError(f"there is no option {key!r}: write {other}={_value_of(other, value)}")
    if key in _OUTPUTS:
        folder = str(Path(value).with_suffix("")) if value.endswith(".onnx") else value or "FOLDER"
        quoted = shlex.quote(folder)
        flags = f"jaxq quantize takes -o {quoted}, and jaxq run takes hydra.run.dir={quoted}"
        raise JaxqError(f"there is no option {key!r}: {flags}")


def _is_model(value: str) -> bool:
    return value.endswith(".onnx") or Path(value).exists() or ("/" in value and looks_like_repository(value))


def _quantize(model: str, others: Sequence[str]) -> str:
    """The command that quantizes a model, for a sentence."""
    return shlex.join(["jaxq", "quantize", model, *others])
