"""The reference of all options; ``python -m jaxq.harness.config_reference`` prints it.

`jaxq.harness.config` describes the options, ``conf/`` has the defaults, and the first comment of a group's file
describes that choice.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, cast, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from jaxq.formats.registry import DTYPES
from jaxq.harness.config import CHOICES, HELP, Config, conf_dir, register

GROUPS = ("model", "method", "dtype", "form")
"""Options whose choices are the files of a folder of ``conf/``."""


@dataclass(frozen=True)
class Option:
    """One option of a run.

    Attributes:
        key: As it is written on the command line: "calib.samples". Of a group, its name: "method".
        type: "int", "float", "bool", "str", "list[str]", with " | None" where null is allowed; "group" of a group.
        default: As it is written on the command line; "null" where nothing is given. Of a group, the name of the
            choice.
        choices: The values that it can have; empty where any of its type can be given.
        description: Sentences on its meaning, unit and range.
    """

    key: str
    type: str
    default: str
    choices: tuple[str, ...]
    description: str


def rows() -> list[Option]:
    """All options, in the order of the schema; a group stands before its options.

    Example:
        >>> next(option.default for option in rows() if option.key == "calib.samples")
        '32'
    """
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        defaults = OmegaConf.to_container(compose("config"))
    return list(_options(Config, cast(Mapping[str, object], defaults), ""))


def group_choices(group: str) -> dict[str, str]:
    """The choices of a group of ``conf/``, each with its description.

    Example:
        >>> group_choices("method")["rtn_dq"]
        'Round to nearest; the file stores the codes.'
    """
    paths = sorted((conf_dir() / group).glob("*.yaml"))
    return {path.stem: _first_comment(path.read_text(encoding="utf-8")) for path in paths}


def main() -> None:
    """Prints the reference as text."""
    for option in rows():
        of_choices = f"; one of {', '.join(option.choices)}" if option.choices else ""
        print(f"{option.key} ({option.type}; default {option.default}{of_choices})")
        print(textwrap.fill(option.description, 100, initial_indent="    ", subsequent_indent="    "))
        if option.type == "group":
            for name, text in group_choices(option.key).items():
                print(textwrap.fill(f"{name}: {text}", 100, initial_indent="      ", subsequent_indent="        "))


def _options(schema: type, defaults: Mapping[str, object], prefix: str) -> Iterator[Option]:
    types = get_type_hints(schema)
    for option in fields(schema):
        key, value, kind = f"{prefix}{option.name}", defaults[option.name], types[option.name]
        if not is_dataclass(kind):
            yield Option(key, _type_name(kind), _written(value), _choices(key, option), option.metadata[HELP])
            continue
        assert isinstance(kind, type) and isinstance(value, Mapping)
        if key in GROUPS:
            yield Option(key, "group", str(value["name"]), tuple(group_choices(key)), option.metadata[HELP])
        yield from _options(kind, value, f"{key}.")


def _choices(key: str, option: Field) -> tuple[str, ...]:
    if key.endswith(".name"):
        return tuple(group_choices(key.removesuffix(".name")))
    return DTYPES if key == "gather.dtype" else option.metadata[CHOICES]


def _type_name(kind: object) -> str:
    if kind is Any:  # the schema's libraries have no such union
        return "str | list[str] | None"
    return kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", ()) else str(kind)


def _written(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _first_comment(text: str) -> str:
    """The comment at the top of a file, without Hydra's directive."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# @package"):
            continue
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


if __name__ == "__main__":
    main()
