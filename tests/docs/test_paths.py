"""Files, folders and tests that the manual names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMED = re.compile(r"`((?:jaxq|tests|experiments|conf|docs)/[\w./-]+)(?:::(\w+))?`")
TO_BE_MADE = ("my_method", "my_form")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page):
    for path, test in NAMED.findall(page.read_text(encoding="utf-8")):
        if any(name in path for name in TO_BE_MADE):
            continue
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"
