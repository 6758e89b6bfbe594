"""Folders of runs and sweeps: those without a result are removed; ``outputs/latest`` points to the last finished."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

LOG = "run.log"
PARTIAL_LOG = f".{LOG}.partial"

_OUTPUTS = "outputs"
_LATEST = "latest"
_NO_RESULT = {".hydra", PARTIAL_LOG}
_RECORDS = {"report.json", "estimate.json"}
_OF_SWEEP = {"multirun.yaml"}
TABLE = "summary.csv"


def remove_without_result(folder: Path, with_record: bool = False) -> None:
    """Removes the folder of a run that has no result, and folders below ``outputs/`` that are empty then.

    A folder with files of an earlier run stays; the unfinished log goes.

    Args:
        folder: The run's folder; may be missing.
        with_record: Records of the run do not count as a result: the table of a sweep has their figures.
    """
    if not folder.is_dir():
        return
    (folder / PARTIAL_LOG).unlink(missing_ok=True)
    expected = _NO_RESULT | (_RECORDS if with_record else set())
    if not {path.name for path in folder.iterdir()} <= expected:
        return
    _remove(folder)


def remove_sweep_without_result(folder: Path, named: bool) -> bool:
    """Removes the folders of a sweep's runs that have no result, and the sweep's own where no other file is left.

    Args:
        folder: The sweep's folder; may be missing.
        named: The user named the folder: records and the table are results there.

    Returns:
        True if the sweep's folder stays.
    """
    if not folder.is_dir():
        return False
    for run in [path for path in folder.iterdir() if path.is_dir()]:
        remove_without_result(run, with_record=not named)
    expected = _OF_SWEEP | (set() if named else {TABLE})
    if folder.is_dir() and not {path.name for path in folder.iterdir()} <= expected:
        return True
    if folder.is_dir():
        _remove(folder)
    return False


def _remove(folder: Path) -> None:
    """Removes a folder, and folders above it below ``outputs/`` that are empty then."""
    shutil.rmtree(folder)
    outputs = Path(_OUTPUTS).absolute()
    with suppress(OSError):  # a parent that is not empty stays
        for parent in folder.absolute().parents:
            if parent != outputs and outputs not in parent.parents:
                break
            parent.rmdir()


def link_latest(folder: Path) -> None:
    """Lets ``outputs/latest`` point to a finished run or sweep, in one step, wherever its folder is.

    Nothing happens where there is no folder ``outputs``, or where the system or the disk has no symbolic links.
    """
    outputs, folder = Path(_OUTPUTS).resolve(), folder.resolve()
    if not outputs.is_dir():
        return
    link = outputs / f".{_LATEST}.{os.getpid()}"
    with suppress(OSError, ValueError):  # ValueError: another drive, to which no relative path leads
        link.symlink_to(os.path.relpath(folder, outputs), target_is_directory=True)
        try:
            link.replace(outputs / _LATEST)
        finally:
            link.unlink(missing_ok=True)
