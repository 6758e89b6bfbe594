"""How the pipeline tells its caller how far it is, without printing."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Begins a phase of ``total`` steps and gives back what to call after each of them."""

    def __call__(self, label: str, total: int, /) -> Callable[[], None]: ...


def silent(label: str, total: int, /) -> Callable[[], None]:
    """Shows nothing."""
    del label, total
    return lambda: None
