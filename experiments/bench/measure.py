"""Run a command in a process of its own and measure it: wall and CPU seconds, peak memory."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Measurement:
    """Time and memory of one run.

    Attributes:
        wall_seconds: From start to end, imports included.
        cpu_seconds: User and system time of the process and what it started.
        peak_mb: Greatest resident set, 10^6 bytes; file pages that it maps count too.
        others_cpu_seconds: CPU time that everything else on the machine used meanwhile; a noisy run shows here.
        load_before: The one-minute load average at the start.
        returncode: 0, or what it ended with; negative for a signal.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_mb: float
    others_cpu_seconds: float
    load_before: float
    returncode: int


def busy_seconds() -> float:
    """CPU seconds that the whole machine has been busy since it started (Linux)."""
    fields = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / TICKS


def limit_threads(threads: int) -> dict[str, str]:
    """Environment for children with ``threads`` threads; pins this process, and so its children, to as many cores.

    Libraries that read no variable (XLA, onnxruntime) take their number of threads from the cores they may use.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    return {name: str(threads) for name in THREAD_VARIABLES}


def measure(command: list[str], environment: dict[str, str], log: Path, timeout: float) -> Measurement:
    """Run ``command`` to its end; its output goes to ``log``.

    The child's peak is only right while this process is small: Linux counts the parent's memory at the fork in.
    """
    load, busy, start = os.getloadavg()[0], busy_seconds(), time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT
        )
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return Measurement(
        wall_seconds=round(wall, 3),
        cpu_seconds=round(cpu, 3),
        peak_mb=round(usage.ru_maxrss * 1024 / 1e6, 1),
        others_cpu_seconds=round(max(0.0, busy_seconds() - busy - cpu), 1),
        load_before=round(load, 2),
        returncode=process.returncode,
    )
