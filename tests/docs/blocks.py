"""The code of the manual's pages: Python is executed, command lines are composed and checked, and some of them run.

Marks, in an HTML comment before a block:

- ``run: next``: the commands of the next block run, in the folder that `lay_out` fills.
- ``skip: next "reason"``: the next block is neither run nor checked.
"""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from sybil import Document, Example, Region
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer

from jaxq import embedded
from jaxq.embedded import build_model, documents
from jaxq.embedded.text import Split
from jaxq.files.model_file import save_model
from jaxq.harness.config import Config, conf_dir, flat_keys, option_names, register
from jaxq.harness.data import check_data, has_data
from jaxq.harness.drawn_text import draws_by_default
from jaxq.harness.make_job import make_job
from jaxq.harness.option_effects import check_options
from jaxq.harness.overrides import with_model
from jaxq.harness.quantize_command import quantize_overrides

PROGRAMS = ("jaxq.run", "jaxq.inspect")
COMMANDS = ("run", "quantize", "compare", "inspect", "cache", "evaluate")

register()


def parse(page: Path) -> Document:
    """A page with its Python blocks, shell blocks and marks."""
    shell = [CodeBlockParser(language, _shell) for language in ("sh", "bash", "shell", "console")]
    return Document.parse(str(page), PythonCodeBlockParser(), *shell, SkipParser(), _marks)


def evaluate(page: Path, folder: Path) -> list[str]:
    """Evaluates the blocks of a page in order, the Python ones in one namespace; returns the reasons of skips."""
    document, skipped = parse(page), []
    document.namespace["__folder__"] = folder
    for example in document:
        try:
            example.evaluate()
        except SkipTest as skip:
            skipped.append(str(skip))
    return skipped


def lay_out(folder: Path) -> None:
    """Fills a folder with what the pages name: the embedded model with its tokenizer, token ids, texts, folders."""
    package = Path(embedded.__file__).parent
    save_model(build_model(), folder / "model.onnx", external_above=1 << 30)
    shutil.copy(package / "tokenizer.json", folder)
    for name in ("my-model", "my-hf-model"):
        (folder / name).mkdir()
        shutil.copy(package / "tokenizer.json", folder / name)
    shutil.copy(folder / "model.onnx", folder / "my-model")
    (folder / "my-hf-model" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "my-hf-model" / "model.safetensors").touch()
    words = np.random.default_rng(0).integers(0, 2048, (10, 32))
    np.savez(folder / "tokens.npz", calib=words[:8], eval=words[8:])
    (folder / "texts").mkdir()
    (folder / "texts" / "pages.txt").write_text(_text("calib"), encoding="utf-8")
    (folder / "held_out.txt").write_text(_text("eval"), encoding="utf-8")


def _text(split: Split) -> str:
    return "\n\n".join(document.text for document in documents(split)[:3])


def command_lines(source: str) -> Iterator[list[str]]:
    """The commands of a shell block, split into words; comments and empty lines are left out."""
    for line in source.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def check_quantize(arguments: Sequence[str]) -> None:
    """Composes the configuration of ``jaxq quantize``, and makes its job.

    Raises:
        JaxqError, HydraException: the command would be refused.
    """
    rest, given, options = iter(arguments), list[str](), dict[str, str]()
    for word in rest:
        if word.startswith("-"):
            options[word] = next(rest)
        else:
            given.append(word)
    assert set(options) <= {"-o", "--data", "--preset"}, options
    model, *settings = given
    output, data, preset = options.get("-o"), options.get("--data"), options.get("--preset", "deploy")
    check_run(quantize_overrides(model, settings, output, data, preset))


def check_run(arguments: Sequence[str]) -> None:
    """Composes the configuration of ``python -m jaxq.run``, of each run of a sweep, and makes its job.

    Raises:
        JaxqError, HydraException: the command would be refused.
    """
    sweep = any(word in ("-m", "--multirun") for word in arguments)
    overrides = OverridesParser.create().parse_overrides([word for word in arguments if not word.startswith("-")])
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if sweep and override.is_sweep_override()
        else [str(override.input_line)]
        for override in overrides
    ]
    for chosen in itertools.product(*choices):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config: Any = compose("config", with_model(chosen))
        _check(config, chosen, sweep)


def _check(config: Config, overrides: Sequence[str], sweep: bool) -> None:
    unknown = set(flat_keys(config)) - set(option_names())
    assert not unknown, f"there are no options {unknown}"
    assert config.model.name != "onnx" or config.model.path
    assert config.model.name != "hf" or config.model.id
    make_job(config, Path("model.onnx"), Path("outputs/model.onnx"), has_data(config))
    check_data(config)
    check_options(config, overrides, has_data(config) or draws_by_default(config), sweep)


def _marks(document: Document) -> Iterator[Region]:
    """``<!-- run: next -->``: the next block of commands runs."""
    for lexed in DirectiveInHTMLCommentLexer("run")(document):
        yield Region(lexed.start, lexed.end, lexed.lexemes["arguments"], _mark)


def _mark(example: Example) -> None:
    assert example.parsed.strip() == "next", f"{example.path}:{example.line}: say run: next"
    example.namespace["__run__"] = True


def _shell(example: Example) -> None:
    folder, runs = example.namespace["__folder__"], example.namespace.pop("__run__", False)
    for words in command_lines(str(example.parsed)):
        program = ".".join(words[:2]) if words[0] == "jaxq" else words[2] if words[:2] == ["python", "-m"] else ""
        assert program in (*PROGRAMS, *(f"jaxq.{command}" for command in COMMANDS)), (
            f"{example.path}:{example.line}: {shlex.join(words)} cannot be checked; "
            'put <!-- skip: next "the reason" --> before its block'
        )
        if program == "jaxq.run":
            check_run(words[words.index("run") + 1 if words[0] == "jaxq" else 3 :])
        if program == "jaxq.quantize":
            check_quantize(words[2:])
        if runs:
            _run(["-m", *words] if words[0] == "jaxq" else words[1:], folder)


def _run(arguments: Sequence[str], folder: Path) -> None:
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "JAXQ_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
