"""Run a command in a process of its own and watch it: wall and CPU seconds, and memory over time (Linux)."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_EVERY = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Watched:
    """Time and memory of one run; memory in MB of 10^6 bytes.

    Attributes:
        wall_seconds: From start to end, imports included.
        cpu_seconds: User and system time of the process and what it started.
        peak_mb: Greatest resident set as the kernel counts it (``ru_maxrss``); file pages that it maps count too.
        peak_anonymous_mb: Greatest part of it that is the process's own memory, of samples each 50 ms.
        peak_file_mb: Greatest part of it that is pages of files, which the system can take back at any time.
        others_cpu_seconds: CPU time that everything else on the machine used meanwhile; a noisy run shows here.
        returncode: 0, or what it ended with; negative for a signal.
        samples: Seconds, anonymous MB, file MB: the greatest of each half second.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_mb: float
    peak_anonymous_mb: float
    peak_file_mb: float
    others_cpu_seconds: float
    returncode: int
    samples: tuple[tuple[float, float, float], ...]


def watch(command: list[str], environment: dict[str, str], log: Path, timeout: float) -> Watched:
    """Runs ``command`` to its end; its output goes to ``log``.

    The peak is only right while this process is small: Linux counts the parent's memory at the fork in.
    """
    busy, start = _busy_seconds(), time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT
        )
        ended, samples = threading.Event(), []
        sampler = threading.Thread(target=_sample, args=(process.pid, start, ended, samples))
        timer = threading.Timer(timeout, process.kill)
        sampler.start()
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
            ended.set()
            sampler.join()
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return Watched(
        wall_seconds=round(wall, 2),
        cpu_seconds=round(cpu, 2),
        peak_mb=round(usage.ru_maxrss * 1024 / 1e6, 1),
        peak_anonymous_mb=max((s[1] for s in samples), default=0.0),
        peak_file_mb=max((s[2] for s in samples), default=0.0),
        others_cpu_seconds=round(max(0.0, _busy_seconds() - busy - cpu), 1),
        returncode=process.returncode,
        samples=_thinned(samples),
    )


def _sample(pid: int, start: float, ended: threading.Event, samples: list[tuple[float, float, float]]) -> None:
    while not ended.wait(_EVERY):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        mb = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Rss")}
        if mb:  # a process that ended has none
            samples.append((round(time.perf_counter() - start, 2), round(mb["RssAnon"], 1), round(mb["RssFile"], 1)))


def _thinned(samples: list[tuple[float, float, float]]) -> tuple[tuple[float, float, float], ...]:
    slots: dict[int, tuple[float, float, float]] = {}
    for seconds, anonymous, file in samples:
        slot = int(2 * seconds)
        _, a, f = slots.get(slot, (0.0, 0.0, 0.0))
        slots[slot] = (slot / 2, max(a, anonymous), max(f, file))
    return tuple(slots.values())


def _busy_seconds() -> float:
    """CPU seconds that the whole machine has been busy since it started."""
    fields = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / _TICKS
