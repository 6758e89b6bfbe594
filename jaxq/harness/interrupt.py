"""Ctrl-C that is not lost: an interrupt that something swallows is raised again."""

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = "interrupted: the same command resumes from its finished work"
EXIT_CODE = 130
"""128 + SIGINT, as in shells."""

_RETRY = 0.01  # seconds until an interrupt that was swallowed is raised again
_PATIENCE = 1.0  # seconds in which further signals count as the same one
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ends the process with a sentence and exit code 130 if Ctrl-C is pressed in the block.

    JAXQ_TRACEBACK=1 shows the traceback in place of the sentence.
    """
    try:
        with lasting_interrupts():
            yield
    except KeyboardInterrupt:
        if os.environ.get("JAXQ_TRACEBACK") == "1":
            raise
        print(f"error: {INTERRUPTED}", file=sys.stderr)
        sys.exit(EXIT_CODE)


@contextmanager
def lasting_interrupts() -> Iterator[None]:
    """Guarantees that Ctrl-C leaves the block as a `KeyboardInterrupt`.

    Python drops exceptions in callbacks of its garbage collector (jax has one), in finalizers and in weak references;
    libraries turn them into errors of their own. Such an interrupt is raised again. A second Ctrl-C, at least a second
    later, ends the process at once, without waiting for the removal of half-written files.

    Outside the main thread, or where SIGINT is ignored or has another handler, nothing changes.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed in the block.
    """
    old = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or old is not signal.default_int_handler:
        yield
        return
    handler, hook = _Handler(), sys.unraisablehook
    signal.signal(signal.SIGINT, handler.handle)
    sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, _Interrupt) else hook(lost)
    try:
        yield
    except (Exception, SystemExit) as error:
        if handler.under_way():
            raise KeyboardInterrupt from error
        raise
    finally:
        handler.over = True
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, old)


class _Interrupt(KeyboardInterrupt):
    """An interrupt whose end is noticed: built-in exceptions take no weak references."""


class _Handler:
    def __init__(self) -> None:
        self.over = False
        self._raised: weakref.ref[_Interrupt] | None = None
        self._since = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self.under_way():
            if sys.stderr.isatty():
                _say("\ninterrupted: finishing the current step; Ctrl-C again stops at once")
            raise self._interrupt()
        if time.monotonic() - self._since > _PATIENCE:
            _leave()

    def under_way(self) -> bool:
        """True while a raised interrupt is neither lost nor caught for good."""
        return self._raised is not None and self._raised() is not None

    def _interrupt(self) -> _Interrupt:
        error = _Interrupt()  # in a frame of its own: a traceback that refers to its exception keeps it alive
        self._raised, self._since = weakref.ref(error, self._lost), time.monotonic()
        return error

    def _lost(self, _: object) -> None:
        if not self.over:  # later, and in no callback: it would be lost there too
            retry = threading.Timer(_RETRY, self._again)
            retry.daemon = True
            retry.start()

    def _again(self) -> None:
        if not self.over:
            os.kill(os.getpid(), signal.SIGINT)  # a real one: it also ends what waits for a lock


def _leave() -> None:
    """Ends the process without waiting for anything: what is finished is safe on disk at any moment."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), _SHOW_CURSOR)  # progress bars hide it
    _say(f"error: {INTERRUPTED}")
    os._exit(EXIT_CODE)


def _say(sentence: str) -> None:
    with suppress(OSError):
        os.write(2, f"{sentence}\n".encode())  # printing is not safe in a handler
