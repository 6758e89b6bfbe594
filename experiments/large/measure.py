"""Measure quantizations of one model, each in a fresh process with an empty cache: seconds, and memory over time.

    python experiments/large/measure.py MODEL_DIR --runs jaxq_awq_lite,jaxq_rtn_dq --out results/8gb.json
    python experiments/large/measure.py MODEL_DIR --runs jaxq_rtn_dq,modelopt_rtn_dq --peer-python PY --repeats 3 ...

MODEL_DIR is what make_llama.py wrote. Repeats are interleaved, so that a drift of the machine's load meets all runs.
What the last repeat of each wrote stays in WORK/<run> with --work; the cache of a run is removed when it ends.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from watch import watch

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
MEDIANS = ("wall_seconds", "cpu_seconds", "peak_mb", "peak_anonymous_mb", "peak_file_mb")


def command(run: str, model: Path, folder: Path, args: argparse.Namespace) -> list[str]:
    """The command line of ``jaxq_<method>`` or ``modelopt_<method>``; it writes FOLDER/model.onnx."""
    tool, _, method = run.partition("_")
    tokens = model.with_name("tokens.npz")
    if tool == "modelopt":
        script = REPOSITORY / "experiments" / "bench" / "peers" / "modelopt_int4.py"
        options = [f"--model={model}", f"--tokens={tokens}", f"--out={folder / 'model.onnx'}", f"--method={method}"]
        return [args.peer_python, str(script), *options, f"--block-size={args.block_size}"]
    samples = 0 if method in ("rtn", "rtn_dq") else args.samples  # rounding needs no data
    return [
        args.jaxq_python,
        "-m",
        "jaxq.run",
        "model=onnx",
        f"model.path={model}",
        f"calib.tokens={tokens}",
        f"calib.samples={samples}",
        "eval.samples=0",
        f"method={method}",
        f"block_size={args.block_size}",
        f"hydra.run.dir={folder}",
        *args.option,
    ]


def run_once(run: str, model: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One measured run; ``error`` where it failed."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "temporary").mkdir(parents=True)
    log = folder.parent / f"{folder.name}.log"
    cache = folder / "cache"
    environment = {"TMPDIR": str(folder / "temporary"), "JAXQ_CACHE": str(cache), "PYTHONPATH": str(REPOSITORY)}
    found: dict[str, Any] = asdict(watch(command(run, model, folder, args), environment, log, args.timeout))
    found["cache_mb"] = round(_size(cache.rglob("*")), 1)
    shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(folder / "temporary", ignore_errors=True)
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    if found["returncode"] != 0 or not (folder / "model.onnx").is_file():
        found["error"] = lines[-1].replace(str(folder), "OUT").replace(str(model), "MODEL")[:300]
        return found
    found["file_mb"] = round(_size(folder.glob("model.onnx*")), 2)
    report = folder / "report.json"
    if report.is_file():
        found["report"] = _digest(json.loads(report.read_text()))
    elif lines[-1].startswith("{"):
        found["tool_says"] = json.loads(lines[-1])
    return found


def _size(paths: Any) -> float:
    return sum(p.stat().st_size for p in paths if p.is_file()) / 1e6


def _digest(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that goes into the results."""
    kept = {name: report[name] for name in ("seconds", "peak_mb", "versions", "device")}
    windows = report["calibration"]["windows"]
    scaled = sum(layer["alpha"] is not None for layer in report["layers"])
    return kept | {
        "weights": len(report["layers"]),
        "scaled": scaled,
        "tokens": report["calibration"]["tokens"],
        "windows": len(windows),
        "greatest_window_mb": round(max((w["weight_bytes"] for w in windows), default=0) / 1e6, 1),
    }


def peer_versions(python: str | None) -> dict[str, str]:
    """Versions of what the peer's Python runs."""
    if python is None:
        return {}
    code = (
        "import importlib.metadata as m, json, platform; names = ('nvidia-modelopt', 'numpy', 'onnx', 'onnxruntime');"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()};"
        "print(json.dumps({'python': platform.python_version(), **{n: have[n] for n in names if n in have}}))"
    )
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def medians(repeats: list[dict[str, Any]]) -> dict[str, float]:
    """Of the repeats that ended well."""
    good = [r for r in repeats if "error" not in r]
    return {name: statistics.median(r[name] for r in good) for name in MEDIANS} if good else {}


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All runs, interleaved; saved after each."""
    model = (args.model / "model.onnx").resolve()
    result: dict[str, Any] = {
        "model": json.loads((args.model / "shape.json").read_text()),
        "model_mb": round(_size(model.parent.glob("model.onnx*")), 1),
        "block_size": args.block_size,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "peer": peer_versions(args.peer_python),
        "options": args.option,
        "runs": {},
    }
    for _ in range(args.repeats):
        for run in args.runs.split(","):
            found = run_once(run, model, work / run, args)
            made = result["runs"].setdefault(run, {"repeats": []})
            made["repeats"].append(found)
            made["median"] = medians(made["repeats"])
            shown = {k: v for k, v in found.items() if k not in ("samples", "report")}
            print(f"{run}: {json.dumps(shown)}", flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--peer-python", default=None)
    parser.add_argument("--jaxq-python", default=sys.executable)
    parser.add_argument("--option", action="append", default=[], help="another option of jaxq, as window_mb=128")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds a run")
    parser.add_argument("--work", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        measure(args, work)


if __name__ == "__main__":
    main()
