"""MkDocs hook: the page of all options, from `jaxq.harness.config_reference`, which reads the schema and ``conf/``."""

import html
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from jaxq.harness.config_reference import Option, group_choices, rows
from jaxq.harness.option_effects import EFFECTS

PAGE = "reference/options.md"

INTRODUCTION = """# Options

All options of `jaxq run` and `jaxq quantize`, as they are written on the command line: `key=value`, or `group=choice`
for the groups `model`, `method`, `dtype`, `form` and `preset`. Unknown keys, wrong types and values out of range are
refused with a sentence.

- `jaxq run --help` has a line for each; `jaxq run --cfg job` prints the configuration that a command composes.
- `python -m jaxq.harness.config_reference` prints this page as text.
- A choice of a group may bring others: `method=rtn` brings `form=qdq`, `method=nvfp4` brings `dtype=nvfp4`, and
  `dtype=nvfp4`, `mxfp8` and `mxfp4` bring `form=portable` and their block size. The command line counts more.
- Lists are written in brackets and quoted for the shell: `'method.exclude=["*lm_head*","*router*"]'`. A single pattern
  needs no brackets: `method.exclude=lm_head`.
- An option on the command line that changes nothing in its run is refused: the column "read with" says which runs read
  it. Options of presets and experiments are not refused. In a sweep each job is checked by itself: the jobs that read
  the option run, and the table names the others.
- `model.path=` alone brings `model=onnx`, and `model.id=` alone `model=hf`.
- `-m` sweeps over values with commas: `-m block_size=32,128`.
- `hydra.run.dir=<folder>` names the folder of a run, `hydra.sweep.dir=<folder>` that of a sweep.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page."""
    files.append(File.generated(config, PAGE, content="\n".join([INTRODUCTION, *_sections(rows())])))
    return files


def _sections(options: list[Option]) -> Iterator[str]:
    """A section for each group of keys; the keys without a dot come first."""
    sections = {"": [option for option in options if "." not in option.key and option.type != "group"]}
    for option in options:
        group, dot, _ = option.key.partition(".")
        if dot:
            sections.setdefault(group, []).append(option)
    groups = {option.key: option for option in options if option.type == "group"}
    for name, members in sections.items():
        yield f"## {name or 'The run'}\n"
        if name in groups:
            yield f"{_text(groups[name].description)} Default: `{name}={groups[name].default}`.\n"
            yield "| choice | meaning |\n|---|---|"
            yield from (f"| `{name}={choice}` | {_text(what)} |" for choice, what in group_choices(name).items())
            yield ""
        yield "| option | type | default | read with | meaning |\n|---|---|---|---|---|"
        yield from map(_row, members)
        yield ""


def _row(option: Option) -> str:
    choices = f" One of {', '.join(f'`{choice}`' for choice in option.choices)}." if _adds(option) else ""
    kind = option.type.replace("| None", "or null")
    default = "that of the dtype" if option.default.startswith("${") else f"`{option.default}`"
    readers = EFFECTS[option.key].readers if option.key in EFFECTS else "every run"
    return f"| `{option.key}` | {_text(kind)} | {default} | {_text(readers)} | {_text(option.description)}{choices} |"


def _adds(option: Option) -> bool:
    """The choices of a group stand in a table of their own."""
    return bool(option.choices) and not option.key.endswith(".name")


def _text(text: str) -> str:
    """Shell patterns must not become emphasis, bars columns, or what stands in angle brackets tags."""
    return re.sub(r"([*|\[\]])", r"\\\1", html.escape(text, quote=False))
