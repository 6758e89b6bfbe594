"""``jaxq``: its commands, and what becomes of words that name none. Nothing here loads JAX before a command runs."""

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jaxq.errors import JaxqError
from jaxq.harness.failures import exit_with_sentence, fail
from jaxq.harness.flags import FLAGS, FLAGS_WITH_VALUE
from jaxq.harness.interrupt import EXIT_CODE
from jaxq.version import __version__

_RUN = "run"
_RESUMED = ("quantize", _RUN)
"""Commands that go on where an interrupted one stopped."""

_OF_MODELS = ("quantize", "evaluate", "inspect")
"""Commands whose first words are models."""

_EPILOG = """\b
Examples:
  jaxq quantize my-model/ --data texts/ -o my-model-int4
  jaxq evaluate my-model-int4/ --data held_out.txt --against my-model/
  jaxq compare outputs/run-a outputs/run-b
  jaxq inspect my-model-int4/
  jaxq cache list
  jaxq run -m method=rtn_dq,best block_size=32,128

`jaxq COMMAND --help` shows what a command takes, `jaxq run --help` all options of a quantization."""

app = typer.Typer(
    name="jaxq",
    help="Give an ONNX model 4-bit weights, and learn what that costs in accuracy, size and time.",
    epilog=_EPILOG,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
cache_app = typer.Typer(
    help="List or clear what later runs can use again.",
    epilog="\b\nExamples:\n  jaxq cache list\n  jaxq cache clear moments --yes",
)
app.add_typer(cache_app, name="cache")

CacheDir = Annotated[
    Path | None, typer.Option(help="The cache; by default $JAXQ_CACHE, or the user's cache folder.", metavar="FOLDER")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def start(arguments: Sequence[str]) -> None:
    """Runs a command; ends the process with a sentence and an exit code where it fails.

    Args:
        arguments: Words after the name of the program.
    """
    first = arguments[0] if arguments else "--help"
    if _is_for_hydra(first):
        _run(list(arguments))
    elif first == _RUN:
        _run(list(arguments[1:]))
    else:
        exit_with_sentence(lambda: _start(arguments or ["--help"]))


def _start(arguments: Sequence[str]) -> None:
    words = _known_first_word(arguments)
    try:
        code = app(words, prog_name="jaxq", standalone_mode=False)
    except typer.TyperException as error:
        raise JaxqError(_usage_sentence(error, words)) from error
    except typer.Abort:  # Ctrl-C at a question
        code = EXIT_CODE
    if code == EXIT_CODE:
        if words[0] in _RESUMED:
            raise KeyboardInterrupt
        fail("interrupted")
    if isinstance(code, int):
        raise SystemExit(code)


def _usage_sentence(error: typer.TyperException, words: Sequence[str]) -> str:
    """A complaint of the parser as a sentence that says where help is."""
    if unknown := next((i for i, word in enumerate(words) if _is_unknown_flag(word, error)), None):
        from jaxq.harness.hydra_door import flag_sentence

        if words[0] in _OF_MODELS:
            return flag_sentence(words[1:], unknown - 1, words[unknown].partition("=")[2], words[0])
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; jaxq {words[0]} --help shows what can be given"


def _is_unknown_flag(word: str, error: typer.TyperException) -> bool:
    unknown = hasattr(error, "possibilities")  # else a flag that there is lacks its value
    return unknown and word.startswith("-") and getattr(error, "option_name", None) == word.partition("=")[0]


def _known_first_word(arguments: Sequence[str]) -> list[str]:
    """The words, with "quantize" before a model.

    Raises:
        JaxqError: the first word is neither a command, nor a flag, nor a model.
    """
    first, commands = arguments[0], [_RUN, "cache", *(str(info.name) for info in app.registered_commands)]
    if first in commands or first in ("-h", "--help", "--version"):
        return list(arguments)
    if first.startswith("-"):
        from jaxq.harness.hydra_door import flag_sentence

        raise JaxqError(flag_sentence(arguments, 0, first.partition("=")[2]))
    if close := next(iter(difflib.get_close_matches(first, commands, n=1, cutoff=0.7)), None):
        raise JaxqError(f"there is no command {first!r}: write {shlex.join(['jaxq', close, *arguments[1:]])}")
    if Path(first).exists() or first.endswith(".onnx"):
        return ["quantize", *arguments]
    model = shlex.join(["jaxq", "quantize", *arguments])
    raise JaxqError(f"there is no command or file {first!r}: a Hugging Face model is {model}; jaxq --help lists all")


def _is_for_hydra(word: str) -> bool:
    """True for a first word that begins a command of Hydra: an override, or one of Hydra's flags."""
    if word.startswith("-"):
        return word.partition("=")[0] in (*FLAGS, *FLAGS_WITH_VALUE)
    return ("=" in word and not Path(word).exists()) or word.startswith("~")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"jaxq {__version__}")
        raise typer.Exit


@app.callback()
def _jaxq(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command(
    "quantize",
    short_help="Write a copy of a model with 4-bit weights, and a report.",
    epilog="\b\nExamples:\n"
    "  jaxq quantize model.onnx\n"
    "  jaxq quantize my-model/ --data texts/ -o my-model-int4\n"
    "  jaxq quantize owner/name --data texts/ --preset accurate\n"
    "  jaxq quantize model.onnx --data tokens.npz method=gptq block_size=64 dry_run=true",
)
def _quantize(
    model: Annotated[
        str,
        typer.Argument(
            help="An .onnx file, a folder (onnxruntime-genai, optimum, Hugging Face), or a Hugging Face repository.",
            metavar="MODEL",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Any options of `jaxq run --help`, such as method=best.", metavar="KEY=VALUE"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder for the files; by default one below outputs/.", metavar="FOLDER"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Calibration data: an .npz file, a text file, a folder of texts, or a dataset. A fifth of a text is "
            "held out to measure accuracy.",
            metavar="FILE|FOLDER|DATASET",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(help="What to optimize for; `jaxq run --help` describes the presets.", metavar="PRESET"),
    ] = "deploy",
) -> None:
    """Write a copy of a model with 4-bit weights, measure its accuracy on held-out data, and write a report.

    The model given is never changed. A command that was stopped resumes when it is repeated.
    """
    from jaxq.harness.quantize_command import quantize

    quantize(model, settings or (), output, data, preset)


@app.command(
    "evaluate",
    short_help="Measure accuracy, size and speed of model files, whoever made them.",
    epilog="\b\nExamples:\n"
    "  jaxq evaluate my-model-int4/ --data held_out.txt --against my-model/\n"
    "  jaxq evaluate int4-a/ int4-b/model.onnx --data tokens.npz --against my-model/ --json\n"
    "  jaxq evaluate model.onnx --prompt 'The capital of France is'\n"
    "  jaxq evaluate my-model-int4/ --data held_out.txt eval.samples=16 eval.length=128\n"
    "  jaxq evaluate my-model-int4/ my-model/ --tasks hellaswag,arc_easy --limit 100\n\n"
    "\b\nKEY=VALUE after the models (`jaxq run --help` describes each):\n"
    "  eval.samples=16 eval.length=256        how much of the data is read; eval=quick: a quarter\n"
    "  eval.tokenizer=tokenizer.json          in place of the one beside the first model\n"
    "  eval.tokens= eval.text= eval.dataset=  in place of --data; a list such as [a/,b/] may have eval.shares=\n"
    "  eval.subset= eval.split= eval.column=  which part of a dataset is read",
)
def _evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="ONNX files, or folders with one; then options eval.* as KEY=VALUE, which stand below.",
            metavar="MODEL",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Held-out data: an .npz file, a text file, a folder of texts, or a dataset.",
            metavar="FILE|FOLDER|DATASET",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The float model, for KL divergence and agreement.", metavar="FLOAT")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="A text to continue; by default the beginning of the data.", metavar="TEXT")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness, separated by commas: names, or YAML files. Needs the extra lm-eval.",
            metavar="TASK,TASK",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Samples of each task at most.", metavar="NUMBER")] = None,
    as_json: Json = False,
) -> None:
    """Measure models on held-out data: perplexity, KL divergence, agreement, size, speed, and a sample of text.

    Models that are no language models are compared by the cosine and the relative error of their outputs.
    """
    from jaxq.harness.evaluate_command import evaluate

    paths = [word for word in models if "=" not in word or Path(word).exists()]
    if not paths:
        raise JaxqError(f"the model is missing: write {shlex.join(['jaxq', 'evaluate', 'MODEL', *models])}")
    if limit is not None and tasks is None:
        raise JaxqError(
            f"--limit is {limit} without --tasks: it limits the samples of tasks; eval.samples those of --data"
        )
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    settings = [word for word in models if word not in paths]
    evaluate(paths, data, against, prompt, settings, (names, limit), as_json)


@app.command(
    "compare",
    short_help="Compare finished runs: size, bits, accuracy, seconds.",
    epilog="Example: jaxq compare outputs/run-a outputs/run-b --json",
)
def _compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs or sweeps.", metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Compare finished runs: size, bits, perplexity, KL divergence, seconds."""
    from jaxq.harness.compare import compare

    compare(runs, as_json)


@app.command("inspect", epilog="Example: jaxq inspect my-model-int4/ --all")
def _inspect(
    model: Annotated[Path, typer.Argument(help="An .onnx file, or a folder with models.", metavar="MODEL")],
    every: Annotated[bool, typer.Option("--all", help="Show every weight.")] = False,
    as_json: Json = False,
) -> None:
    """Show which weights of a model are quantized, and how."""
    from jaxq.readback.show import show_models

    show_models(model, every, as_json)


@app.command(_RUN, short_help="Quantize with Hydra's overrides, or sweep with -m.", add_help_option=False)
def _run(arguments: Annotated[list[str], typer.Argument(metavar="KEY=VALUE")]) -> None:
    """Quantize with Hydra's overrides (key=value), or sweep over their values with -m."""
    from jaxq.harness.hydra_door import run

    run(arguments)


@cache_app.command("list", epilog="Example: jaxq cache list --json")
def _cache_list(cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """Show what is in the cache, and its size."""
    from jaxq.harness.cache_command import list_cache

    list_cache(cache_dir, as_json)


@cache_app.command(
    "clear",
    short_help="Delete what is in the cache, of one kind or all.",
    epilog="\b\nExamples:\n  jaxq cache clear\n  jaxq cache clear moments --yes",
)
def _cache_clear(
    kind: Annotated[
        str | None, typer.Argument(help="A kind that `jaxq cache list` shows; all where none is given.", metavar="KIND")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Delete what is in the cache, of one kind or all; never while a run uses it."""
    from jaxq.harness.cache_command import clear_cache

    clear_cache(kind, cache_dir, None if yes else typer.confirm)
