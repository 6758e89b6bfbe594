"""Accuracy of all methods on SmolLM2-135M, beside ModelOpt's and onnxruntime's, with one command.

    python experiments/bench/accuracy.py --models DIR --peer-python PY --prose FOLDER
        --out experiments/bench/results/accuracy.json

DIR holds smollm2p/ as `make_smollm2.py` writes it. PY is a Python that has nvidia-modelopt[onnx]; without one its
rows fail. FOLDER holds prose in .html, .txt or .md. Every method that calibrates runs once for each seed, on rows drawn
with it. Files are judged on held-out text like the calibration's, and on the prose: perplexity, KL divergence to the
float model and top-1 agreement at accuracy level 1. What is there already in the results is not run again.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measure import limit_threads
from runs import RUNS, Run, Setup
from smollm2p import device, run_once, save, versions, written_files
from texts import drawn_rows, prose_ids, spread_rows, topic_ids
from tokenizers import Tokenizer

HERE = Path(__file__).parent
EVAL_LENGTH = 512
WITHOUT_DATA = ("onnxruntime_rtn", "modelopt_rtn_dq", "jaxq_rtn_dq", "onnxruntime_hqq", "onnxruntime_k_quant")
JAXQ = ("awq_clip", "rtn_search", "gptq", "awq_gptq", "best")
ALL = (
    *("onnxruntime_rtn", "onnxruntime_hqq", "onnxruntime_k_quant"),
    *("modelopt_rtn_dq", "modelopt_awq_lite_cached", "modelopt_awq_full_cached"),
    *("jaxq_rtn_dq", "jaxq_awq_lite", "jaxq_awq_full", *(f"jaxq_{name}" for name in JAXQ)),
)


def find_run(name: str) -> Run:
    """A run of the benchmark, or one of those that only this script has."""
    if name in RUNS:
        return RUNS[name]
    tool = name.partition("_")[0]
    return Run(name, "jaxq", "onnxruntime" if tool == "onnxruntime" else "jax", name.replace("_", " ", 1))


def write_tokens(args: argparse.Namespace, folder: Path, seed: int) -> Path:
    """The token file of a seed: calibration rows, and a row for evaluations that are not asked for."""
    path = folder / f"tokens-{seed}.npz"
    tokenizer = Tokenizer.from_file(str(args.models / "smollm2p" / "tokenizer.json"))
    rows = drawn_rows(topic_ids(tokenizer, 0), args.calib_rows, seed)
    np.savez(path, calib=rows, eval=spread_rows(topic_ids(tokenizer, 1), 1, EVAL_LENGTH))
    return path


def write_held_out(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Token files of the held-out texts."""
    tokenizer = Tokenizer.from_file(str(args.models / "smollm2p" / "tokenizer.json"))
    texts = {"like": topic_ids(tokenizer, 1), "unlike": prose_ids(tokenizer, args.prose)}
    paths = {}
    for name, ids in texts.items():
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], eval=spread_rows(ids, args.eval_rows, EVAL_LENGTH))
    return paths


def evaluate(model: Path, reference: Path, held_out: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Figures of a file, and of the float model, on each text."""
    found = {}
    for text, tokens in held_out.items():
        out = folder / "quality.json"
        options = [f"--reference={reference}", f"--tokens={tokens}", f"--out={out}", "--levels=1"]
        subprocess.run([sys.executable, str(HERE / "evaluate.py"), *options, f"file={model}"], check=True)
        files = json.loads(out.read_text())["files"]
        found[text] = {"float": files["fp32"]["level1"], **files["file"]["level1"]}
    return found


def share_closed(perplexity: float, rounded: float, exact: float) -> float:
    """Share of the gap in log-perplexity that is closed: plain rounding 0, float 1."""
    return float(1 - np.log(perplexity / exact) / np.log(rounded / exact))


def measured(name: str, seed: int, args: argparse.Namespace, held_out: dict[str, Path], work: Path) -> dict[str, Any]:
    """One method with one seed."""
    model = args.models / "smollm2p" / "model.onnx"
    setup = Setup(
        model, write_tokens(args, work, seed), args.calib_rows, args.block_size, sys.executable, args.peer_python
    )
    folder = work / f"{name}-{seed}"
    made = run_once(find_run(name), setup, folder, limit_threads(args.threads), args.timeout)
    if "error" not in made:
        (path,) = [p for p in written_files(folder) if p.suffix == ".onnx"]
        made["quality"] = evaluate(path, model, held_out, work)
    shutil.rmtree(folder, ignore_errors=True)
    return made


def table(result: dict[str, Any]) -> str:
    """Means over the seeds, with the greatest distance from them."""
    lines = [
        "| | seconds | file MB | text | perplexity | gap closed | KL | top-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rounded = result["runs"].get("modelopt_rtn_dq") or result["runs"].get("jaxq_rtn_dq") or {}
    for name, seeds in result["runs"].items():
        good = [made for made in seeds.values() if "quality" in made]
        for text in good[0]["quality"] if good else ():
            each = [made["quality"][text] for made in good]
            plain = [made["quality"][text]["perplexity"] for made in rounded.values() if "quality" in made]
            closed = [share_closed(q["perplexity"], plain[0], q["float"]["perplexity"]) for q in each] if plain else []
            figures = [[q["perplexity"] for q in each], closed, [q["kl"] for q in each], [q["top1"] for q in each]]
            cells = [_spread(values) for values in figures]
            seconds = np.mean([made["wall_seconds"] for made in good])
            lines.append(f"| {name} | {seconds:.0f} | {good[0]['file_mb']:.1f} | {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = float(np.mean(values))
    digits = 2 if mean >= 2 else 3
    return f"{mean:.{digits}f}" + (f" ± {max(abs(v - mean) for v in values):.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--peer-python", default="python")
    parser.add_argument("--methods", default=",".join(ALL))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calib-rows", type=int, default=32, help="of 256 tokens")
    parser.add_argument("--eval-rows", type=int, default=16, help="of 512 tokens, of each text")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings = {k: getattr(args, k) for k in ("calib_rows", "eval_rows", "block_size", "threads")}
    packages = {name: version(name) for name in ("jax", "numpy", "onnx", "onnxruntime")}
    result: dict[str, Any] = {"settings": settings, "python": platform.python_version(), "versions": packages}
    result |= {"peer_versions": versions(args.peer_python), "device": device(args.threads), "runs": {}}
    if args.out.exists():
        old = json.loads(args.out.read_text())
        if old["settings"] != settings:
            parser.error(f"{args.out} has other settings: {old['settings']}")
        result["runs"] = old["runs"]
    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder:
        held_out = write_held_out(args, Path(folder))
        for name in args.methods.split(","):
            for seed in range(1 if name in WITHOUT_DATA else args.seeds):
                seeds = result["runs"].setdefault(name, {})
                if "quality" not in seeds.get(str(seed), {}):
                    seeds[str(seed)] = measured(name, seed, args, held_out, Path(folder))
                    save(args.out, result)
                    print(name, seed, json.dumps(seeds[str(seed)]), flush=True)
    text = table(result)
    args.out.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
