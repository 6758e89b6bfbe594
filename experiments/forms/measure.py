"""Measure which onnxruntime takes which form: loads, exactness, fusion, speed against float32.

    python experiments/forms/measure.py                                  # the onnxruntime of this Python
    python experiments/forms/measure.py --python a/bin/python b/bin/python    # those of others, which need only that

The files are written once, by the Python that runs this. Writes results/<version>.json for each Python, and
results/table.md from all that are there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from cases import CASES, large, write_case, write_large

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def write_files(folder: Path) -> None:
    """Writes all models, unless they are in the folder already."""
    if (folder / "cases.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(large(), folder / "plain.onnx")
    for case in CASES:
        write_case(case, folder / case.name)
        if case.gather_axis is None and not case.half:
            write_large(case, folder / "plain.onnx", folder / case.name)
    (folder / "cases.json").write_text(json.dumps([case.name for case in CASES]))


def run_files(folder: Path, pythons: Sequence[str]) -> None:
    """Runs the files in each Python, one after the other."""
    for python in pythons:
        found = folder / "result.json"
        subprocess.run([python, HERE / "run_files.py", folder, found], check=True)
        result = json.loads(found.read_text())
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{result['onnxruntime']}.json").write_text(json.dumps(result, indent=1) + "\n")


def table() -> str:
    """All results in Markdown: one row a case, one column a version."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    results.sort(key=lambda r: [int(part) for part in r["onnxruntime"].split(".")])
    versions = [r["onnxruntime"] for r in results]
    lines = ["| form, dtype, block size | " + " | ".join(versions) + " |", "|---" * (len(versions) + 1) + "|"]
    for case in CASES:
        cells = [_cell(r["cases"][case.name]) for r in results]
        lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(found: dict) -> str:
    if not found["runs"]:
        return "-"
    parts = [f"{found['exact_error']:.0e} / {found['default_error']:.0e}"]
    parts += [f"{count} {'fused' if op == 'MatMulNBits' else 'looked up'}" for op, count in found["operators"].items()]
    if "default_speed" in found:
        parts.append(
            " ".join(f"{speed:g}x" for name in ("exact", "default") for speed in found[f"{name}_speed"].values())
        )
    return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="Pythons with an onnxruntime each")
    parser.add_argument("--files", type=Path, help="a folder to keep the files in, about 1 GB; else they are removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.files or Path(temporary) / "files").resolve()
        write_files(folder)
        run_files(folder, arguments.python)
    (RESULTS / "table.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
