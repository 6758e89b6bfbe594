"""Every option is described, once, in the schema; the help and the files of conf/ agree with it."""

import re

import pytest

from jaxq.formats.registry import DTYPES
from jaxq.harness.config import conf_dir, option_names
from jaxq.harness.config_reference import GROUPS, Option, group_choices, main, rows
from jaxq.harness.help_text import run_help

ROWS = rows()
HELP = run_help()


def test_every_option_has_one_row():
    keys = [option.key for option in ROWS]
    groups = {"mixed", "gather", "calib", "eval"}  # they have options, but no choices
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(option_names()) - groups


@pytest.mark.parametrize("option", ROWS, ids=lambda option: option.key)
def test_every_option_is_described(option: Option):
    assert len(option.description.split()) >= 4
    assert option.description[0].isupper() or option.description.startswith(("awq", "rtn", "gptq", "best", "form="))
    assert option.description.endswith(".")
    assert option.default != ""


def test_defaults_and_choices():
    by_key = {option.key: option for option in ROWS}
    assert by_key["method"] == Option(
        "method", "group", "auto", tuple(group_choices("method")), "The quantization method, with the defaults of its "
        "parameters."
    )  # fmt: skip
    assert (by_key["calib.samples"].type, by_key["calib.samples"].default) == ("int", "32")
    assert (by_key["eval.samples"].default, by_key["eval.batch_size"].default) == ("64", "1")
    assert (by_key["method.exclude"].type, by_key["method.exclude"].default) == ("list[str]", '["*lm_head*"]')
    assert (by_key["scale_dtype"].type, by_key["scale_dtype"].default) == ("str | None", "null")
    assert by_key["gather.dtype"].choices == DTYPES
    assert by_key["form.name"].choices == by_key["form"].choices


@pytest.mark.parametrize("group", [*GROUPS, "preset", "experiment"])
def test_every_choice_is_described_and_in_the_help(group):
    entry = re.search(rf"^  {group}: ((.|\n {{6,}})+)", HELP, re.MULTILINE)
    assert entry is not None
    choices = group_choices(group)
    assert set(choices) <= set(re.findall(r"\w+", entry[1]))
    for name, text in choices.items():
        assert len(text) > 12, f"{group}={name}"


def test_comments_in_yaml_state_no_values():
    """The schema describes options; a number in a comment could contradict it."""
    for path in (conf_dir() / "config.yaml", *(conf_dir() / "defaults").glob("*.yaml")):
        comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert not [line for line in comments[1:] if re.search(r"\d", line)], path
        assert all(len(line) < 121 for line in comments)


def test_the_help_names_every_key_with_its_meaning():
    for option in ROWS:
        if option.type != "group" and not option.key.endswith(".name"):
            assert re.search(rf"^  {re.escape(option.key)} \(.*\): \w+", HELP, re.MULTILINE), option.key
    assert "defaults" not in re.findall(r"^  ([\w/]+):", HELP, re.MULTILINE), "a group of its own within conf/"


def test_the_examples_of_the_help_use_options_that_exist():
    examples = re.findall(r"^    jaxq run (.*)$", HELP, re.MULTILINE)
    assert len(examples) == 5
    keys = {argument.partition("=")[0] for example in examples for argument in example.split() if "=" in argument}
    assert keys <= {option.key for option in ROWS}


@pytest.mark.parametrize("arguments", [("run", "--help"), ("run", "-h"), ("method=best", "--help")])
def test_the_help_is_printed(jaxq, arguments):
    done = jaxq(*arguments)
    assert done.code == 0, done.err
    assert done.out == f"{HELP}\n"
    assert "Powered by Hydra" not in done.out


def test_the_reference_as_text(capsys):
    main()
    text = capsys.readouterr().out
    assert "calib.samples (int; default 32)" in text
    assert "      rtn_dq: Round to nearest; the file stores the codes." in text
