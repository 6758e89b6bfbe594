"""``run.log``: what a run printed, with times, versions and warnings."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxq.harness.lasting_console import LastingConsole
from jaxq.harness.run_folder import LOG, PARTIAL_LOG

_LOGGER = "jaxq"
_WIDTH = 160


class LoggedConsole(LastingConsole):
    """A console that also logs what it prints. Progress bars are not logged."""

    def print(self, *objects: Any, **options: Any) -> None:  # type: ignore[override]
        super().print(*objects, **options)
        text = StringIO()
        Console(file=text, width=_WIDTH, color_system=None).print(*objects, **options)
        for line in text.getvalue().splitlines():
            if line.strip():
                logging.getLogger(_LOGGER).info("%s", line.rstrip())


@contextmanager
def run_log(folder: Path, overrides: Sequence[str], versions: Mapping[str, str]) -> Iterator[None]:
    """Writes what is logged in the block, and Python's warnings, to the run's folder.

    The file gets its name ``run.log`` when the block ends without an error. Warnings go to standard error as before.

    Args:
        folder: The run's folder.
        overrides: The overrides on the command line, for the first lines.
        versions: Versions of libraries, for the first lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / PARTIAL_LOG, mode="w", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    own, root = logging.getLogger(_LOGGER), logging.getLogger()
    before = own.level, own.propagate
    own.setLevel(logging.INFO)
    own.propagate = False  # what is logged there is on the terminal already
    own.addHandler(file)
    root.addHandler(file)
    root.addHandler(terminal)
    logging.captureWarnings(True)
    try:
        own.info("overrides: %s", " ".join(overrides) or "none")
        own.info("versions: %s", ", ".join(f"{name} {version}" for name, version in versions.items()))
        yield
    finally:
        logging.captureWarnings(False)
        own.removeHandler(file)
        root.removeHandler(file)
        root.removeHandler(terminal)
        own.setLevel(before[0])
        own.propagate = before[1]
        file.close()
    (folder / PARTIAL_LOG).replace(folder / LOG)
