"""The folder of a run: one that holds no result is removed, and ``outputs/latest`` points to the last finished one."""

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
    shutil.rmtree(folder)
    outputs = Path(_OUTPUTS).absolute()
    with suppress(OSError):  # a parent that is not empty stays
        for parent in folder.absolute().parents:
            if parent != outputs and outputs not in parent.parents:
                break
            parent.rmdir()


def link_latest(folder: Path) -> None:
    """Lets ``outputs/latest`` point to a finished run or sweep below ``outputs/``, in one step.

    Nothing happens where the system or the disk has no symbolic links.
    """
    outputs, folder = Path(_OUTPUTS).absolute(), folder.absolute()
    if outputs not in folder.parents:
        return
    link = outputs / f".{_LATEST}.{os.getpid()}"
    with suppress(OSError):
        link.symlink_to(folder.relative_to(outputs), target_is_directory=True)
        try:
            link.replace(outputs / _LATEST)
        finally:
            link.unlink(missing_ok=True)
