"""jaxq's array functions beside ModelOpt's and onnxruntime's on one weight: time and memory, with one command.

    python experiments/bench/functions.py --peer-python PY --out experiments/bench/results/functions.json

PY is a Python that has nvidia-modelopt[onnx]. Each tool runs in a process of its own and waits while another works;
repeats are interleaved, so that a drift of the machine's load meets all of them. Compilation is not in the times: each
way to compute a function runs once before, and that is reported beside them.

All of it is measured in two settings of the C library's allocator. As it comes, it gives an array above 32 MB back to
the system when it is freed, and the next one costs a page fault for every 4 kB, which is most of what a function that
makes an array of the weight's size takes. With "memory kept" (MALLOC_ARENA_MAX=1, MALLOC_MMAP_MAX_=0 and a trim
threshold) freed memory is used again, as onnxruntime's own arena has it in either setting.

Ratios are the peer's median over jaxq's; where a peer has several ways, its fastest counts. Peak memory is the growth
of the resident set during one call, its result included, in copies of the weight.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import limit_threads
from rich.console import Console
from rich.table import Table
from smollm2p import device, save

HERE = Path(__file__).resolve().parent
TOOLS = ("jaxq", "modelopt", "onnxruntime")
SETTINGS = {
    "default": {},
    "memory kept": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "4000000000",
    },
}
PAUSE = 0.05
"""Seconds before each call: threads that wait for work by spinning have stopped by then."""


class Worker:
    """One tool's process."""

    def __init__(self, python: str, tool: str, environment: dict[str, str], args: argparse.Namespace) -> None:
        script = [python, str(HERE / "peers" / f"functions_{tool}.py")]
        options = [f"--size={args.size}", f"--block-size={args.block_size}"]
        paths = {"PYTHONPATH": str(HERE.parent.parent)}
        self.command = " ".join([*script, *options])
        self.process = subprocess.Popen(
            [*script, *options],
            env={**os.environ, **environment, **paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if args.quiet else None,
            text=True,
        )
        listed = self._read()
        while not isinstance(listed, dict):
            listed = self._read()
        self.versions: dict[str, str] = listed["versions"]
        self.calls: list[dict[str, Any]] = listed["calls"]

    def ask(self, what: str, number: int) -> Any:
        """The answer to ``time N`` or ``peak N``."""
        assert self.process.stdin is not None
        time.sleep(PAUSE)
        self.process.stdin.write(f"{what} {number}\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.command} ended; run it alone to see why")
        try:
            return json.loads(line)
        except json.JSONDecodeError:  # what a library prints while it is imported
            return None


def measure_function(workers: dict[str, Worker], function: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every tool's ways to compute it: samples in seconds, interleaved."""
    ways = []
    for tool, worker in workers.items():
        for number, call in enumerate(worker.calls):
            if call["function"] == function:
                way = {"tool": tool, "label": call["label"], "share": call["share"]}
                way |= {"warm_up_seconds": worker.ask("time", number), "samples": [], "number": number}
                if "temporary_bytes" in call:
                    way["temporary_copies"] = round(call["temporary_bytes"] / (4 * args.size**2), 3)
                    way["output_copies"] = round(call["output_bytes"] / (4 * args.size**2), 3)
                ways.append(way)
    for _ in range(args.repeats):
        for way in ways:
            way["samples"].append(workers[way["tool"]].ask("time", way["number"]))
    for way in ways:
        number = way.pop("number")
        way["median_ms"] = round(1e3 * statistics.median(way["samples"]), 3)
        way["least_ms"] = round(1e3 * min(way["samples"]), 3)
        way["samples"] = [round(s, 6) for s in way["samples"]]
        way["warm_up_seconds"] = round(way["warm_up_seconds"], 4)
        if way["share"] == 1:
            way["peak_copies"] = round(workers[way["tool"]].ask("peak", number) / (4 * args.size**2), 2)
    return ways


def fastest(ways: list[dict[str, Any]], tool: str) -> dict[str, Any] | None:
    """A tool's way of least median; jaxq's is the one on JAX arrays, by the functions as they are."""
    own = [w for w in ways if w["tool"] == tool and (tool != "jaxq" or w["label"] == "jax")]
    return min(own, key=lambda w: w["median_ms"], default=None)


def ratios(ways: list[dict[str, Any]]) -> dict[str, float]:
    """Each peer's median over jaxq's."""
    jaxq = fastest(ways, "jaxq")
    assert jaxq is not None
    peers = {tool: fastest(ways, tool) for tool in TOOLS[1:]}
    return {tool: round(way["median_ms"] / jaxq["median_ms"], 2) for tool, way in peers.items() if way}


def table(setting: str, functions: dict[str, Any]) -> Table:
    """Medians in ms, ratios and memory of one setting."""
    made = Table(title=f"allocator: {setting} (median ms; x: times jaxq's)", title_justify="left")
    for head in ("", "jaxq", "from numpy", "ModelOpt", "x", "onnxruntime", "x", "temporaries", "peak", "ModelOpt's"):
        made.add_column(head, justify="right" if head else "left")
    for name, found in functions.items():
        ways, times = found["ways"], found["ratios"]
        own, modelopt, ort = (fastest(ways, tool) for tool in TOOLS)
        numpy = next(w for w in ways if w["tool"] == "jaxq" and w["label"] == "numpy")
        assert own is not None
        made.add_row(
            name,
            f"{own['median_ms']:.1f}",
            f"{numpy['median_ms']:.1f}",
            *(f"{modelopt['median_ms']:.1f}" if modelopt else "-", f"{times.get('modelopt', '-')}"),
            *(f"{ort['median_ms']:.1f}" if ort else "-", f"{times.get('onnxruntime', '-')}"),
            *(f"{own['temporary_copies']:.2f}", f"{own['peak_copies']:.2f}"),
            f"{modelopt['peak_copies']:.2f}" if modelopt and "peak_copies" in modelopt else "-",
        )
    return made


def measure_setting(setting: str, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """All functions in one setting; fills ``result`` and saves it after each."""
    environment = limit_threads(args.threads) | SETTINGS[setting]
    pythons = {"jaxq": args.jaxq_python, "modelopt": args.peer_python, "onnxruntime": args.jaxq_python}
    workers = {tool: Worker(pythons[tool], tool, environment, args) for tool in TOOLS}
    result["versions"] = {tool: worker.versions for tool, worker in workers.items()}
    found = result["settings"][setting] = {"environment": SETTINGS[setting], "functions": {}}
    for function in dict.fromkeys(call["function"] for call in workers["jaxq"].calls):
        load = os.getloadavg()[0]
        ways = measure_function(workers, function, args)
        found["functions"][function] = {"ratios": ratios(ways), "load_before": round(load, 2), "ways": ways}
        save(args.out, result)
        print(f"{setting}, {function}: {found['functions'][function]['ratios']}", flush=True)
    for worker in workers.values():
        worker.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--jaxq-python", default=sys.executable)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quiet", action="store_true", help="drop what the tools write to stderr")
    return parser.parse_args()


def main() -> None:
    args = parse()
    result: dict[str, Any] = {
        "device": device(args.threads),
        "versions": {},
        "config": {"shape": [args.size, args.size], "dtype": "float32", "block_size": args.block_size,
                   "repeats": args.repeats},
        "settings": {},
    }  # fmt: skip
    for setting in SETTINGS:
        measure_setting(setting, args, result)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for setting, found in result["settings"].items():
        console.print(table(setting, found["functions"]))


if __name__ == "__main__":
    main()
