"""Serve timed calls of functions over stdin and stdout: one process a tool, all waiting while one of them works."""

import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Call:
    """One way to compute a function.

    Attributes:
        function: What is computed: the same name in every tool.
        label: How, where a tool has several ways.
        run: Does it once, and returns its result when it is there.
        share: Part of the weight that ``run`` works on; its time is divided by it.
        facts: What else the result should say.
    """

    function: str
    label: str
    run: Callable[[], object]
    share: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)


def weight(size: int) -> np.ndarray:
    """The weight [size, size] that every tool gets."""
    return np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)


def _memory(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def peak_bytes(run: Callable[[], object]) -> int:
    """Memory that ``run`` takes at its height, its result included: growth of the resident set (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
    before = _memory("VmRSS")
    result = run()
    peak = _memory("VmHWM") - before
    del result
    return peak


def serve(calls: list[Call], versions: dict[str, str]) -> None:
    """Print what there is, then answer ``time N`` and ``peak N`` until the input ends, one JSON line each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    listed = [{"function": c.function, "label": c.label, "share": c.share, **c.facts} for c in calls]
    answer({"versions": versions, "calls": listed})
    for line in sys.stdin:
        what, _, number = line.partition(" ")
        call = calls[int(number)]
        if what == "peak":
            answer(peak_bytes(call.run))
            continue
        start = time.perf_counter()
        result = call.run()
        seconds = time.perf_counter() - start
        del result
        answer(seconds / call.share)
