"""The manual builds without warnings, and the code and commands of its pages work as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException

from jaxq.errors import JaxqError
from tests.docs.blocks import check_quantize, check_run, command_lines, evaluate, lay_out, parse

ROOT = Path(__file__).parents[2]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if list(parse(page))]
MOST_README_LINES = 150


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    lay_out(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_and_commands_of_a_page(page, examples, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    shutil.copytree(examples, folder)
    monkeypatch.chdir(folder)
    assert all(evaluate(page, folder)), "a block is skipped without a reason"


def test_the_first_run_prints_what_the_pages_show(jaxq):
    done = jaxq("method=awq_lite", "block_size=128")
    shown = [_output((ROOT / page).read_text(encoding="utf-8")) for page in ("README.md", "docs/index.md")]
    assert shown[0] == shown[1]
    assert _lines(done.out)[:-2] == _lines(shown[0])[:-2], "the last lines name the folder"


def _output(text: str) -> str:
    """The output of the first run in a page."""
    found = re.search(r"```text\n(evaluation: [^`]*awq_lite, int4.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def _lines(text: str) -> list[str]:
    """Lines without numbers, rules and the list of phases.

    Figures and generated text differ between machines and versions of Python; phases that take no time are not printed.
    """
    text = re.sub(r"(?m)^(text after|  float|  quantized): .*$", r"\1", text)
    text = re.sub(r"^.* about [\d:]+ left$", "", text, flags=re.MULTILINE)  # on progress, of slow machines
    masked = re.sub(r"\(data .*?\)|[\d.%]+|[━─┏┓┡┩└┘┳╇┴]+", "", text)
    return [words for line in masked.splitlines() if (words := " ".join(line.split()))]


def test_the_manual_builds(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r'(?:src|<link[^>]*href)="?(https?://[^" >]+)', text)
        assert not loads, f"{page.name} loads {loads}"
        assert 'class="arithmatex"' not in text, f"{page.name} has a formula that is not MathML"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_README_LINES


def test_the_readme_links_to_files_that_are_there():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_shell_and_python_block_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('```sh\npython -m jaxq.run\n```\n\n<!-- skip: next "no network" -->\n\n```python\n1 / 0\n```\n')
    assert len(list(parse(page))) == 3
    assert evaluate(page, tmp_path) == ["no network"]


@pytest.mark.parametrize(
    "line",
    ["method=none", "model=onnx", "method.min_alpha=0.5", "-m block_size=32,1", "method=rtn_dq method.damping=0.1"],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises((AssertionError, JaxqError, HydraException)):
        check_run(line.split())


@pytest.mark.parametrize(
    "line", ["nowhere.onnx", "model.onnx --preset x", "model.onnx method=none", "model.onnx --dat x"]
)
def test_a_wrong_command_of_the_short_kind_is_found(line, examples, monkeypatch):
    monkeypatch.chdir(examples)
    check_quantize(["model.onnx", "-o", "out"])
    with pytest.raises((AssertionError, JaxqError, HydraException)):
        check_quantize(line.split())


def test_commands_go_over_lines_and_have_comments():
    assert list(command_lines("# a\npython -m x \\\n  b='c d'  # e\n\n")) == [["python", "-m", "x", "b=c d"]]
