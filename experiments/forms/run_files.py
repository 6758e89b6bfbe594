"""Load and run the files of `measure.py` in whatever onnxruntime is installed: it needs that and numpy, nothing else.

python run_files.py <folder> <result.json>
"""

import json
import os
import platform
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

ROWS = (1, 128)
SECONDS = 0.6
# An operator's name as it stands in a file: field 4 of a node, its length, its name.
FUSED = {b"\x22\x0bMatMulNBits": "MatMulNBits", b"\x22\x14GatherBlockQuantized": "GatherBlockQuantized"}


def open_session(path, exact, optimized=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def relative(got, want):
    want = want.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def check(folder):
    """Errors against the dequantized weights at both levels, and the operators that the codes ended up in."""
    feeds, expected = (dict(np.load(folder / f"{name}.npz")) for name in ("feeds", "expected"))
    found = {}
    for name in ("exact", "default"):
        optimized = folder / f"optimized_{name}.onnx"
        session = open_session(folder / f"{name}.onnx", name == "exact", optimized)
        results = zip(session.run(None, feeds), expected.values(), strict=True)
        found[f"{name}_error"] = float(f"{max(relative(got, want) for got, want in results):.2g}")
        data = optimized.read_bytes()
        found["operators"] = {op: n for pattern, op in FUSED.items() if (n := data.count(pattern))}
    return found


def once(session, feeds):
    start = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - start


def speed(session, plain, rows, inner):
    """Speed over the float32 session: the ratio of median times, measured in turns."""
    feeds = {"x": np.random.default_rng(0).standard_normal((rows, inner)).astype(np.float32)}
    for each in (session, plain):
        once(each, feeds)
    count = min(max(int(SECONDS / (once(session, feeds) + once(plain, feeds))), 3), 30)
    turns = [(once(session, feeds), once(plain, feeds)) for _ in range(count)]
    return float(f"{statistics.median(p for _, p in turns) / statistics.median(s for s, _ in turns):.2g}")


def speeds(folder, plain):
    found = {}
    inner = plain.get_inputs()[0].shape[1]
    for name in ("exact", "default"):
        session = open_session(folder / f"large_{name}.onnx", name == "exact")
        found[f"{name}_speed"] = {str(rows): speed(session, plain, rows, inner) for rows in ROWS}
    return found


def reason(error):
    """The error's message without paths."""
    message = re.sub(r"\S*/\S*", "...", str(error).replace("\n", " "))
    return re.sub(r"\s+", " ", message)[:200]


def run_case(folder, plain):
    try:
        found = {"runs": True, **check(folder)}
    except Exception as error:  # onnxruntime raises many kinds
        return {"runs": False, "reason": reason(error)}
    if (folder / "large_default.onnx").exists():
        try:
            found |= speeds(folder, plain)
        except Exception as error:
            found["reason"] = reason(error)
    return found


def processor():
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor()


def main():
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    plain = open_session(folder / "plain.onnx", exact=True)
    cases = json.loads((folder / "cases.json").read_text())
    result = {
        "onnxruntime": onnxruntime.__version__,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "cases": {name: run_case(folder / name, plain) for name in cases},
    }
    target.write_text(json.dumps(result, indent=1) + "\n")


main()
