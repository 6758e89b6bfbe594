"""Ctrl-C ends a run wherever it arrives, with a sentence; the same command then goes on."""

import gc
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from jaxq.harness.interrupt import lasting_interrupts

SMALL = ("method=awq_lite", "calib.samples=4", "calib.length=64", "eval.samples=4", "eval.length=64")
SENTENCE = "error: interrupted: the same command resumes from its finished work"


@contextmanager
def at_collection(work: Callable[[], None]) -> Iterator[None]:
    """Calls something whenever garbage is collected; what it raises is dropped by Python."""

    def call(phase: str, info: object) -> None:
        del phase, info
        work()

    gc.callbacks.append(call)
    try:
        yield
    finally:
        gc.callbacks.remove(call)


class OnceWhen:
    """Presses Ctrl-C at the first call in the main thread at which something holds: it is raised in the call."""

    def __init__(self, holds: Callable[[], object]) -> None:
        self.holds, self.pressed = holds, False

    def __call__(self) -> None:
        if threading.current_thread() is threading.main_thread() and not self.pressed and self.holds():
            self.pressed = True
            signal.raise_signal(signal.SIGINT)


@pytest.mark.long
@pytest.mark.parametrize(
    "finished", ["run-*/windows/captured/state.json", "../*/outputs/*/*/model.onnx"], ids=["first", "last"]
)
def test_a_run_that_is_interrupted_in_a_callback_goes_on_later(finished, jaxq, tmp_path):
    """In the first window after one that is finished, or in the evaluation."""
    own = tmp_path / "own"
    own.mkdir()
    press = OnceWhen(lambda: list(own.glob(finished)))
    with at_collection(press):
        done = jaxq(*SMALL, f"cache_dir={own}")
    assert press.pressed
    assert done.code == 130
    assert done.err.strip().splitlines()[-1] == SENTENCE
    assert "ignored" not in done.err and "Traceback" not in done.err
    assert len(list(done.folder.rglob("*.onnx"))) == finished.endswith("onnx")
    assert not list(done.folder.rglob("report.json"))
    assert not [p for p in own.rglob(".*") if p.is_file()]  # nothing half written
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, whole = jaxq(*SMALL, f"cache_dir={own}"), jaxq(*SMALL, f"cache_dir={tmp_path / 'another'}")
    assert again.code == whole.code == 0
    assert "the run resumes its work" in again.out
    assert not list(own.glob("run-*"))
    assert (again.run_folder / "model.onnx").read_bytes() == (whole.run_folder / "model.onnx").read_bytes()


def press() -> None:
    signal.raise_signal(signal.SIGINT)


class Final:
    def __del__(self) -> None:
        press()


def in_a_collection() -> None:
    with at_collection(OnceWhen(lambda: True)):
        gc.collect()


def in_a_finalizer() -> None:
    Final()


def in_a_weak_reference() -> None:
    thing = Final.__new__(type("Thing", (), {}))
    kept = weakref.ref(thing, lambda _: press())
    del thing
    del kept


def caught() -> None:
    with suppress(BaseException):  # as libraries do
        press()


def turned_into_an_error_that_is_caught() -> None:
    try:
        try:
            press()
        except BaseException as error:
            raise ImportError("a library's own") from error
    except ImportError:
        pass


@pytest.mark.parametrize(
    "lose", [in_a_collection, in_a_finalizer, in_a_weak_reference, caught, turned_into_an_error_that_is_caught]
)
def test_an_interrupt_that_is_swallowed_is_raised_again(lose, capfd):
    went_on = threading.Event()
    cleaned = False
    with pytest.raises(KeyboardInterrupt), lasting_interrupts():  # noqa: PT012
        try:
            lose()
            went_on.wait(20)
        finally:
            cleaned = True
            went_on.wait(0.1)  # nothing is raised here again
            cleaned = cleaned and not went_on.is_set()
    assert cleaned
    assert not capfd.readouterr().err


@pytest.mark.parametrize("error", [ImportError("of its own"), SystemExit(2)], ids=["error", "exit"])
def test_what_an_interrupt_was_turned_into_is_one(error):
    def turn() -> None:
        try:
            press()
        except BaseException as interrupt:
            raise error from interrupt

    with pytest.raises(KeyboardInterrupt), lasting_interrupts():
        turn()


def test_errors_pass():
    with pytest.raises(SystemExit, match="2"), lasting_interrupts():
        sys.exit(2)


def test_a_signal_that_is_ignored_stays_so():
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with lasting_interrupts():
            press()
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_second_one_ends_the_process_at_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, time\n"
        "from jaxq.harness.interrupt import lasting_interrupts\n"
        "with lasting_interrupts():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    finally:\n"
        "        signal.raise_signal(signal.SIGINT)\n"  # the same, as some shells send it to a process and its group
        "        print('cleaned', flush=True)\n"
        "        time.sleep(1.1)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        print('went on')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=root, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleaned\n", f"{SENTENCE}\n")
