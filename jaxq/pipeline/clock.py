"""Seconds and peak memory of each phase of a run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter


@dataclass(frozen=True)
class Phase:
    """Seconds that a phase took, and the process's peak memory at its end."""

    name: str
    seconds: float
    peak_mb: float


@dataclass
class Clock:
    """Collects phases, in the order in which they first began."""

    phases: list[Phase] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a ``with`` block, and adds it to the phase. A phase inside another one counts for itself alone."""
        if name not in [phase.name for phase in self.phases]:
            self.phases.append(Phase(name, 0.0, peak_mb()))
        start, others = perf_counter(), self._total()
        yield
        seconds = perf_counter() - start - (self._total() - others)
        index = [phase.name for phase in self.phases].index(name)
        self.phases[index] = Phase(name, self.phases[index].seconds + seconds, peak_mb())

    def _total(self) -> float:
        return sum(phase.seconds for phase in self.phases)


def peak_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes); NaN on Windows."""
    if sys.platform == "win32":
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
