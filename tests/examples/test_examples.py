"""Every file of examples/ runs from any folder, is short, and prints last the line that its docstring announces."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = 30


def docstring_lines(path: Path) -> list[str]:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()


def test_the_folder_has_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_its_docstring_says_what_it_shows_and_prints(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    shows, prints = docstring_lines(path)
    assert shows.startswith("Shows ")
    assert prints.startswith("Prints: ")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_the_line_that_its_docstring_announces(path, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAXQ_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == docstring_lines(path)[1].removeprefix("Prints: ")
    assert [left.name for left in tmp_path.iterdir() if left.name != "cache"] == []
