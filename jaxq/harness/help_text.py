"""The help of ``jaxq run``: made from the schema and from ``conf/``, so that it names what there is."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import cast

from omegaconf import DictConfig, OmegaConf

from jaxq.harness.config import conf_dir
from jaxq.harness.config_reference import GROUPS, Option, group_choices, rows

_WIDTH = 100

_BEGINNING = """\
Quantize an ONNX model: write it with 2-bit to 8-bit weights, measure its accuracy on held-out data, and report
accuracy, size and time in a folder below outputs/ (model.onnx, report.json, layers.csv, run.log). With -m, do so for
all combinations of several values. `jaxq quantize MODEL` is the short way to one model.

usage: jaxq run [group=choice] [option=value] ...        (or python -m jaxq.run ...)

examples:
  the embedded model, which needs no data of yours
    jaxq run method=awq_lite block_size=128
  an ONNX file, with text for calibration and for evaluation
    jaxq run model=onnx model.path=model.onnx calib.text=docs/ eval.text=held_out.txt
  a Hugging Face model; a fifth of the text is held out for the evaluation
    jaxq run model=hf model.id=my-model/ calib.text=docs/ eval.holdout_fraction=0.2
  an estimate of size, memory and time; no model is written
    jaxq run model=onnx model.path=model.onnx calib.tokens=tokens.npz dry_run=true
  a sweep of all combinations, with one table at its end
    jaxq run -m method=rtn_dq,awq_lite block_size=32,128
"""

_END = """\
flags:
  -m, --multirun   run a sweep; values are separated by commas
  --cfg job        print all options with their values, and do nothing else
  --hydra-help     more flags, of Hydra

`python -m jaxq.harness.config_reference` prints all of each description, and describes every choice of a group.
"""

_HIDDEN = ".name"
"""End of the keys that groups set."""


def run_help() -> str:
    """The help: what the command does, examples, every group with its choices, every option with its meaning."""
    return "\n".join([_BEGINNING, *_groups(), "", *_options(rows()), "", _END]).rstrip()


def _groups() -> Iterator[str]:
    defaults = {option.key: option for option in rows() if option.type == "group"}
    yield "groups, each with its choices (*: the default):"
    for group in GROUPS:
        option = defaults[group]
        yield _entry(group, f"{option.description} {', '.join(_marked(option))}")
    choices = " ".join(f"{name}{'*' * (name == 'full')}: {text}" for name, text in group_choices("eval").items())
    yield _entry("eval", f"How much held-out data is read. {choices}")
    yield _entry("preset", f"What is optimized for. {' '.join(_presets())}")
    yield _entry("experiment", f"A sweep that is kept as a file; no default. {', '.join(group_choices('experiment'))}")


def _presets() -> Iterator[str]:
    """The presets with their descriptions."""
    defaults = cast(DictConfig, OmegaConf.load(conf_dir() / "config.yaml")).defaults
    default = next(entry["preset"] for entry in defaults if isinstance(entry, DictConfig) and "preset" in entry)
    for name, text in group_choices("preset").items():
        yield f"{name}{'*' * (name == default)}: {text}"


def _marked(option: Option) -> Iterator[str]:
    return (f"{choice}*" if choice == option.default else choice for choice in option.choices)


def _options(options: Sequence[Option]) -> Iterator[str]:
    yield "options, each with its default:"
    for option in options:
        if option.type != "group" and not option.key.endswith(_HIDDEN):
            default = "of the dtype" if option.default.startswith("${") else option.default
            yield _entry(f"{option.key} ({default})", _first_sentence(option.description) + _choices(option))


def _choices(option: Option) -> str:
    """A sentence on the values that an option can have; "" where all of its type can be given."""
    if not option.choices:
        return ""
    return f" {'One of' if len(option.choices) > 1 else 'Its one value:'} {', '.join(option.choices)}."


def _entry(title: str, text: str) -> str:
    return textwrap.fill(f"{title}: {text}", _WIDTH, initial_indent="  ", subsequent_indent="      ")


def _first_sentence(text: str) -> str:
    """A description up to its first full stop that ends a sentence."""
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]
