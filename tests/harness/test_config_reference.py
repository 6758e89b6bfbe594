"""Every option is described, once, in the schema; the help and the files of conf/ agree with it."""

import re

import pytest
from omegaconf import OmegaConf

from jaxq.formats.registry import DTYPES
from jaxq.harness.config import conf_dir, option_names
from jaxq.harness.config_reference import GROUPS, Option, group_choices, main, rows

ROWS = rows()
HELP = (conf_dir() / "hydra/help/jaxq.yaml").read_text(encoding="utf-8")


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


@pytest.mark.parametrize("group", [*GROUPS, "experiment"])
def test_every_choice_is_described_and_in_the_help(group):
    line = re.search(rf"^    {group} +((.|\n {{8,}})+)", HELP, re.MULTILINE)
    assert line is not None
    choices = group_choices(group)
    assert sorted(re.findall(r"\w+", line[1])) == sorted(choices)
    for name, text in choices.items():
        assert len(text) > 12, f"{group}={name}"


def test_comments_in_yaml_state_no_values():
    """The schema describes options; a number in a comment could contradict it."""
    for path in (conf_dir() / "config.yaml", *(conf_dir() / "defaults").glob("*.yaml")):
        comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert not [line for line in comments[1:] if re.search(r"\d", line)], path
        assert all(len(line) < 121 for line in comments)


def test_the_examples_of_the_help_use_options_that_exist():
    template = str(OmegaConf.load(conf_dir() / "hydra/help/jaxq.yaml").template)
    examples = re.findall(r"^ +python -m jaxq\.run (.*)$", template, re.MULTILINE)
    assert len(examples) == 5
    keys = {argument.partition("=")[0] for example in examples for argument in example.split() if "=" in argument}
    assert keys <= {option.key for option in ROWS}


def test_the_help_is_the_templates_text(jaxq):
    done = jaxq("--help")
    assert done.code == 0, done.err
    assert done.out.startswith("Quantize an ONNX model")
    assert "python -m jaxq.harness.config_reference" in done.out
    assert "Powered by Hydra" not in done.out


def test_the_reference_as_text(capsys):
    main()
    text = capsys.readouterr().out
    assert "calib.samples (int; default 32)" in text
    assert "      rtn_dq: Round to nearest; the file stores the codes." in text
