"""Locks on a cache: runs use it side by side, and nothing is deleted while one of them does."""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from jaxq.errors import JaxqError

LOCKS = "locks"
"""Folder of all locks in a cache; `jaxq.pipeline.resume` keeps the locks of stopped runs there."""

_GATE = "gate"
_USE = "use-"


@contextmanager
def cache_in_use(root: Path) -> Iterator[None]:
    """Marks a cache as used until the block ends: `cache_to_itself` refuses it meanwhile.

    Any number of processes may use a cache. A cache that cannot be written has no mark: nothing can be deleted there.

    Args:
        root: The cache's folder; it is made.
    """
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            stack.enter_context(_mark(root / LOCKS))
        yield


@contextmanager
def _mark(locks: Path) -> Iterator[None]:
    """A lock file of its own, made behind the gate: no deletion is under way then."""
    locks.mkdir(parents=True, exist_ok=True)
    path = locks / f"{_USE}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    mark = FileLock(path)
    with FileLock(locks / _GATE):
        mark.acquire()
    try:
        yield
    finally:
        mark.release()
        path.unlink(missing_ok=True)


@contextmanager
def cache_to_itself(root: Path) -> Iterator[None]:
    """Keeps all runs out of a cache until the block ends: those that begin wait.

    Args:
        root: The cache's folder.

    Raises:
        JaxqError: a run uses the cache, or it has no locks.
    """
    locks = root / LOCKS
    try:
        locks.mkdir(parents=True, exist_ok=True)
        gate = FileLock(locks / _GATE, timeout=0)
        gate.acquire()
    except Timeout as error:
        raise JaxqError(f"another command starts or deletes in the cache {str(root)!r}: try again") from error
    except (OSError, NotImplementedError) as error:
        raise JaxqError(f"the cache {str(root)!r} cannot be locked: {error}") from error
    try:
        for path in sorted(p for p in locks.iterdir() if p.name != _GATE):
            _check_free(path, root)
        yield
    finally:
        gate.release()


def _check_free(path: Path, root: Path) -> None:
    """Raises an error if a process holds the lock; a mark that a killed process left is removed."""
    lock = FileLock(path, timeout=0)
    try:
        with lock:
            pass
        if path.name.startswith(_USE):
            path.unlink(missing_ok=True)
    except Timeout as error:
        raise JaxqError(f"a run uses the cache {str(root)!r}: wait until it ends, and try again") from error
    except OSError as error:
        raise JaxqError(f"the cache {str(root)!r} cannot be locked: {error}") from error
