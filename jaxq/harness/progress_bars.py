"""Progress of a run: bars in a terminal, a line now and then in a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxq.progress import Progress as ProgressCallback

_UNITS = {"search": "weight", "choose formats": "weight", "export": "model"}
"""What a step of a phase works on, where it is not a batch."""

_LINE_SECONDS = 30.0
"""Least seconds between two lines about a phase where the output is no terminal."""

_SPEED_SECONDS = 120.0
"""Time over which speed is averaged: weights differ in size, and a short window would make the time left jump."""

_TIMED_BATCHES = 2
"""Batches of the evaluation before its time is told: the first one compiles."""


@contextmanager
def progress_bars(console: Console, shorter: str = "") -> Iterator[ProgressCallback]:
    """Shows each phase: a bar with time spent and time left; where the output is no terminal, a line every 30 seconds.

    The evaluation is announced with its share of the time, once its second batch is done.

    Args:
        console: The output.
        shorter: How to shorten the evaluation, for its announcement; empty to say nothing on that.
    """
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.fields[unit]} {task.completed} of {task.total}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    run_start = perf_counter()
    bars = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=_SPEED_SECONDS)
    with bars:

        def begin(label: str, total: int, /) -> Callable[[], None]:
            unit = _UNITS.get(label, "batch")
            task = bars.add_task(label, total=total, unit=unit)
            lines = None if console.is_terminal else _Lines(console, label, unit, total)
            announce = _Announcement(console, run_start, total, shorter) if label == "evaluate" else None

            def advance() -> None:
                bars.advance(task)
                if lines is not None:
                    lines.advance()
                if announce is not None:
                    announce.advance()

            return advance

        yield begin


class _Lines:
    """A line about a phase from time to time, for outputs that are no terminal."""

    def __init__(self, console: Console, label: str, unit: str, total: int) -> None:
        self._console, self._label, self._unit, self._total = console, label, unit, total
        self._done, self._start = 0, perf_counter()
        self._last = self._start

    def advance(self) -> None:
        """Counts a step, and prints a line if the last one is long ago."""
        self._done += 1
        now = perf_counter()
        if now - self._last < _LINE_SECONDS or self._done == self._total:
            return
        self._last = now
        spent = now - self._start
        left = spent / self._done * (self._total - self._done)
        step = f"{self._unit} {self._done} of {self._total}"
        print_line(self._console, f"{self._label}: {step}, {_clock(spent)} spent, about {_clock(left)} left")


class _Announcement:
    """Says once how long the evaluation takes, which share of the run that is, and how to shorten it."""

    def __init__(self, console: Console, run_start: float, total: int, shorter: str) -> None:
        self._console, self._total, self._shorter, self._done = console, total, shorter, 0
        self._start = self._first = perf_counter()
        self._before = self._start - run_start

    def advance(self) -> None:
        """Counts a batch; the speed is that of the second one."""
        self._done += 1
        now = perf_counter()
        if self._done < _TIMED_BATCHES:
            self._first = now
        elif self._done == _TIMED_BATCHES and self._total > _TIMED_BATCHES:
            seconds = self._first - self._start + (now - self._first) * (self._total - 1)
            share = seconds / (self._before + seconds)
            shorter = f"; {self._shorter}" if self._shorter else ""
            line = f"evaluation: {self._total} batches, about {seconds:.0f} s, {share:.0%} of the run{shorter}"
            print_line(self._console, line)


def print_line(console: Console, sentence: str) -> None:
    """Prints a sentence as it is, on one line."""
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
