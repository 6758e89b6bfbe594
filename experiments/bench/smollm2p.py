"""jaxq beside ModelOpt and onnxruntime on SmolLM2-135M: time, memory, size and quality, with one command.

    python experiments/bench/smollm2p.py --models DIR --peer-python PY --out experiments/bench/results/smollm2p.json

DIR holds smollm2p/model.onnx (input_ids, attention_mask -> logits; 210 MatMul weights and an lm_head, which all tools
leave alone) and smollm2p/tokens.npz (`calib` [n, 256], `eval` [rows, 512]). PY is a Python that has
nvidia-modelopt[onnx]. Every tool gets the same 8 calibration rows, block size 128, the same cores and a fresh process;
repeats are interleaved, so that a drift of the machine's load meets all of them. What cannot be run is reported so.
ModelOpt's default AWQ path runs the whole model once per weight and row: it is measured on 7 and 28 of the 210 weights
and extrapolated, unless --full-default is given. Evaluation takes longer than all else; --rows cuts it.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from measure import limit_threads, measure
from report import extrapolate, medians, ratios, table
from runs import HERE, LONG, REPOSITORY, RUNS, Run, Setup, command, shown

PACKAGES = ("jax", "jaxlib", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "nvidia-modelopt", "torch")


def versions(python: str) -> dict[str, str]:
    """Versions of the packages that ``python`` has; empty if it cannot be run."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': platform.python_version(), **{n: found[n] for n in sys.argv[1:] if n in found}}))"
    )
    try:
        done = subprocess.run([python, "-c", code, *PACKAGES], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return json.loads(done.stdout)


def device(threads: int) -> dict[str, Any]:
    """The machine, in words."""
    info = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "cpu": models[0] if models else platform.processor(),
        "avx512_vnni": "avx512_vnni" in info,
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def write_tokens(source: Path, target: Path, rows: int) -> None:
    """Writes a token file whose `calib` has the rows of every tool, evenly spread over those of the source."""
    with np.load(source) as data:
        chosen = np.linspace(0, len(data["calib"]) - 1, rows).astype(int)
        np.savez(target, calib=data["calib"][chosen], eval=data["eval"])


def written_files(folder: Path) -> list[Path]:
    """The model that a run wrote, and its external data; empty if there is not exactly one model."""
    models = [p for p in folder.rglob("*.onnx") if not {"cache", "temporary"} & set(p.relative_to(folder).parts)]
    return sorted(models[0].parent.glob(f"{models[0].name}*")) if len(models) == 1 else []


def digest(files: list[Path]) -> str:
    """SHA-256 over the hashes of the files. Reads in pieces: a child's peak memory starts at that of this process."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def run_once(run: Run, setup: Setup, folder: Path, environment: dict[str, str], timeout: float) -> dict[str, Any]:
    """One measured run; ``error`` where it failed."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "temporary").mkdir(parents=True)
    log = folder.parent / f"{folder.name}.log"
    environment = {**environment, "TMPDIR": str(folder / "temporary"), "PYTHONPATH": str(REPOSITORY)}
    found: dict[str, Any] = asdict(measure(command(run, setup, folder), environment, log, timeout))
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    files = written_files(folder)
    if found["returncode"] != 0 or not files:
        found["returncode"] = found["returncode"] or 1
        found["error"] = shown(lines[-1], setup, folder)[:300]
        return found
    found["file_mb"] = round(sum(p.stat().st_size for p in files) / 1e6, 2)
    found["sha256"] = digest(files)
    if lines[-1].startswith("{"):
        found["tool_says"] = json.loads(lines[-1])
    return found


def measure_all(names: list[str], setup: Setup, work: Path, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """All runs, interleaved; fills ``result["runs"]`` and saves it after each."""
    environment = limit_threads(args.threads)
    for name in names:
        run = RUNS[name]
        has = result["versions"][run.python]
        result["runs"][name] = {"command": shown(" ".join(command(run, setup, work / name)), setup, work / name)}
        if not any(package.startswith(run.module) for package in has):
            result["runs"][name]["error"] = f"unavailable: the {run.python} Python has no {run.module}"
    for repeat in range(args.repeats):
        for name in names:
            made = result["runs"][name]
            if made.get("error") or (repeat and name in LONG):
                continue
            found = run_once(RUNS[name], setup, work / name, environment, args.timeout)
            made.setdefault("repeats", []).append(found)
            if "error" in found:
                made["error"] = found["error"]
            made["median"] = medians(made["repeats"])
            print(f"{name}: {json.dumps(found)}", flush=True)
            save(args.out, result)


def evaluate_all(names: list[str], setup: Setup, work: Path, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Quality of what the last repeats wrote, by one evaluator in a process of its own."""
    files = {}
    for name in names:
        paths = [p for p in written_files(work / name) if p.suffix == ".onnx"]
        if paths and not RUNS[name].subset and not result["runs"][name].get("error"):
            files[name] = paths[0]
    out = work / "quality.json"
    script = [setup.jaxq_python, str(HERE / "evaluate.py"), f"--reference={setup.model}", f"--tokens={setup.tokens}"]
    options = [f"--out={out}", f"--threads={args.threads}", *([f"--rows={args.rows}"] if args.rows else [])]
    subprocess.run([*script, *options, *(f"{n}={p}" for n, p in files.items())], check=True)
    quality = json.loads(out.read_text())
    result["evaluation"] = {"onnxruntime": quality["onnxruntime"], "rows": quality["rows"]}
    result["fp32"] = quality["files"]["fp32"]
    for name in files:
        result["runs"][name]["quality"] = quality["files"][name]


def save(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--jaxq-python", default=sys.executable)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", default="", help=f"some of {','.join(RUNS)}; all but {','.join(LONG)} if left out")
    parser.add_argument("--full-default", action="store_true", help="run ModelOpt's default AWQ path on all weights")
    parser.add_argument("--calib-rows", type=int, default=8)
    parser.add_argument("--rows", type=int, default=0, help="evaluate the first rows only")
    parser.add_argument("--no-evaluation", action="store_true")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds a run")
    parser.add_argument(
        "--work", type=Path, default=None, help="folder for the files; kept. A temporary one if left out"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    names = [n for n in args.runs.split(",") if n] or [n for n in RUNS if n not in LONG]
    if unknown := set(names) - set(RUNS):
        sys.exit(f"--runs has {sorted(unknown)}: choose from {', '.join(RUNS)}")
    if args.full_default and "modelopt_awq_lite_default" not in names:
        names.append("modelopt_awq_lite_default")
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        model = (args.models / "smollm2p" / "model.onnx").resolve()
        setup = Setup(model, work / "tokens.npz", args.calib_rows, 128, args.jaxq_python, args.peer_python)
        write_tokens(model.with_name("tokens.npz"), setup.tokens, args.calib_rows)
        result: dict[str, Any] = {
            "device": device(args.threads),
            "versions": {"jaxq": versions(setup.jaxq_python), "peer": versions(setup.peer_python)},
            "config": {"model": "smollm2p", "model_mb": round(model.stat().st_size / 1e6, 1), "block_size": 128,
                       "calibration": [args.calib_rows, 256], "repeats": args.repeats},
            "runs": {},
        }  # fmt: skip
        measure_all(names, setup, work, args, result)
        if not args.no_evaluation:
            evaluate_all(names, setup, work, args, result)
    result["extrapolated"] = extrapolate(result["runs"])
    result["ratios"] = ratios(result)
    save(args.out, result)
    print(table(result))


if __name__ == "__main__":
    main()
