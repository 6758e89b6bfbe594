"""Write files that appear complete or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path that replaces ``path`` when the block ends; after an error, or Ctrl-C, it is removed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears complete or not at all."""
    with written_whole(path) as beside:
        beside.write_bytes(content)
