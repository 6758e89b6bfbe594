"""Runs the command line in this process, in an empty folder."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from jaxq.__main__ import main


@dataclass(frozen=True)
class Finished:
    """What a run left: exit code, output, and the folders with its reports."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def run_folder(self) -> Path:
        return next(self.folder.glob("outputs/**/report.json")).parent

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.run_folder / "report.json").read_text())


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def jaxq(tmp_path, monkeypatch, capfd, cache):
    """Calls ``jaxq`` with arguments."""
    count = iter(range(100))

    def call(*arguments: str) -> Finished:
        folder = tmp_path / f"call{next(count)}"
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("JAXQ_CACHE", str(cache))
        monkeypatch.setattr(sys, "argv", ["jaxq", *arguments])
        GlobalHydra.instance().clear()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capfd.readouterr()
        return Finished(code, out, err, folder)

    return call
