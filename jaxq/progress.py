"""Progress of the pipeline, reported to the caller without printing."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Begins a phase of ``total`` steps; returns a function to call after each step."""

    def __call__(self, label: str, total: int, /) -> Callable[[], None]: ...


def silent(label: str, total: int, /) -> Callable[[], None]:
    """Reports no progress."""
    del label, total
    return lambda: None
