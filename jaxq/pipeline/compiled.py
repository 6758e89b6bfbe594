"""Compiled programs of this process, and the limit that Linux sets to them."""

import logging
from pathlib import Path

import jax

_MAPS = Path("/proc/self/maps")
_LIMIT = Path("/proc/sys/vm/max_map_count")
_SHARE = 0.4

_log = logging.getLogger(__name__)


def release_programs(share: float = _SHARE) -> bool:
    """Drops JAX's compiled programs where they take much of the memory maps that a process may have.

    A program that is compiled for a CPU takes about 18 memory maps. Linux allows a process 65,530 of them. Past that
    limit XLA ends the process with a segmentation fault: after some 3,600 programs, as a long sweep in one process has.
    A dropped program that is needed again is read from JAX's cache on disk, or compiled again.

    Args:
        share: Share of the limit from which on the programs are dropped.

    Returns:
        True if the programs were dropped. Systems without Linux's counts never drop any.

    Example:
        >>> release_programs(share=1.0)
        False
    """
    try:
        limit = int(_LIMIT.read_text())
        with _MAPS.open("rb") as maps:
            count = sum(1 for _ in maps)
    except (OSError, ValueError):
        return False
    if count <= share * limit:
        return False
    _log.info("%d of %d memory maps are in use: compiled programs are dropped", count, limit)
    jax.clear_caches()
    return True
