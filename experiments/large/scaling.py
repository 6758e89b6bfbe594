"""Time of awq_lite against layers (2048 tokens) and against tokens (4 layers), on small Llama-shaped models.

    python experiments/large/scaling.py --out experiments/large/results/scaling.json

Every point is a fresh process with an empty cache. Repeats are interleaved, and add to those that the file has. The
models take 1 GB of disk meanwhile.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from make_llama import LENGTH, SIZES, write_llama
from measure import run_once

LAYERS = (2, 4, 8, 16, 32)
SAMPLES = (8, 16, 32, 64, 128)
PHASES = ("calibrate", "search", "write", "total", "cpu")
"""Wall seconds of the phases and of the run, and CPU seconds of the process, which a busy machine changes less."""


def points() -> list[tuple[str, int, int]]:
    """Points: the name of the varied quantity, layers, samples."""
    by_layers = [("layers", layers, SAMPLES[0]) for layers in LAYERS]
    return by_layers + [("tokens", 4, samples) for samples in SAMPLES]


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All points, interleaved; saved after each."""
    for layers in LAYERS:
        config = replace(SIZES["small"], layers=layers)
        write_llama(work / str(layers), config, max(SAMPLES) if layers == 4 else SAMPLES[0])
    result: dict[str, Any] = {"length": LENGTH, "points": {}}
    if args.out.is_file():
        result = json.loads(args.out.read_text())
    for _ in range(args.repeats):
        for varied, layers, samples in points():
            args.samples = samples
            found = run_once("jaxq_awq_lite", work / str(layers) / "model.onnx", work / "run", args)
            if "error" in found:
                sys.exit(found["error"])
            name = f"{varied}-{layers}-{samples}"
            point = {"varied": varied, "layers": layers, "tokens": samples * LENGTH, "repeats": []}
            point = result["points"].setdefault(name, point)
            report = found.pop("report")
            found.pop("samples")
            point["repeats"].append(found | {"seconds": report["seconds"]})
            seconds = [repeat["seconds"] | {"cpu": repeat["cpu_seconds"]} for repeat in point["repeats"]]
            point["median"] = {p: round(statistics.median(s[p] for s in seconds), 3) for p in PHASES}
            result |= {"versions": report["versions"], "device": report["device"]}
            print(name, point["median"], f"wall {found['wall_seconds']}", flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None)
    parser.set_defaults(jaxq_python=sys.executable, peer_python=None, option=[], timeout=3600.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        measure(args, Path(folder))


if __name__ == "__main__":
    main()
