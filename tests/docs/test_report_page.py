"""The page of report fields has every key of a real report, and every field of the records behind it."""

import csv
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from jaxq.evaluation.outputs import JudgedOutput, OutputComparison, OutputError
from jaxq.harness.sweep_rows import COLUMNS
from jaxq.pipeline.dry_run import Estimate
from jaxq.search.result import Layer

PAGE = (Path(__file__).parents[2] / "docs/reference/report.md").read_text(encoding="utf-8")
OPEN = ("config", "versions", "peak_mb", "accuracy.not_compared")
"""Keys whose own keys are described elsewhere, or are free."""


def section(title: str) -> str:
    """The text below a heading, up to the next heading of its level or above."""
    level, start = title.split(" ", maxsplit=1)[0], PAGE.index(f"\n{title}\n") + 1
    end = re.search(rf"^#{{2,{len(level)}}} ", PAGE[start + len(title) :], re.MULTILINE)
    return PAGE[start : start + len(title) + end.start()] if end else PAGE[start:]


def names(text: str) -> set[str]:
    """Names in the first column of a section's tables, and names that go with the first of a row."""
    rows = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def leaves(record: dict[str, object], prefix: str = "") -> Iterator[str]:
    """Keys of nested dictionaries as the page writes them; a runtime's name is a star."""
    for key, value in record.items():
        name = f"{prefix}{'*' if prefix == 'accuracy.runtimes.' else key}"
        if isinstance(value, dict) and name not in OPEN:
            yield from leaves(value, f"{name}.")
        else:
            yield name


def test_every_key_of_a_report_is_on_the_page(jaxq):
    done = jaxq("method=rtn_dq", "calib.samples=0", "eval.samples=2", "eval.length=32")
    assert done.code == 0, done.err
    report = done.report
    page = names(section("## report.json"))
    missing = set(leaves(report)) - page
    assert missing == set()
    with (done.run_folder / "layers.csv").open() as file:
        assert set(next(csv.reader(file))) == names(section("## layers.csv"))
    assert all(f"`{key}`" in section("## report.json") for entry in report["skipped"] for key in entry)


def test_the_other_records_are_on_the_page():
    assert {field.name for field in fields(Layer)} == names(section("## layers.csv"))
    estimate = {name.removeprefix("estimate.") for name in names(section("## estimate.json"))}
    assert estimate == {field.name for field in fields(Estimate)}
    assert all(f"`{name}`" in section("## summary.csv") for name in COLUMNS)
    accuracy = section("### accuracy")
    for record in (OutputComparison, JudgedOutput, OutputError):
        for field in fields(record):
            assert re.search(rf"[`.]{field.name}`", accuracy), field.name
