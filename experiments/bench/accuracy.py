"""Accuracy of all methods on SmolLM2-135M or the embedded model, beside ModelOpt's and onnxruntime's, with one command.

    python experiments/bench/accuracy.py --models DIR --peer-python PY --prose FOLDER
        --out experiments/bench/results/accuracy.json
    python experiments/bench/accuracy.py --model embedded --peer-python PY --prose FOLDER
        --out experiments/bench/results/accuracy_embedded.json

DIR holds smollm2p/ as `make_smollm2.py` writes it. PY is a Python that has nvidia-modelopt[onnx], with torch, which
onnxruntime's HQQ needs too; without one their rows fail. onnxruntime's k_quant wants an even number of whole blocks a
column: it gets blocks of 32. FOLDER holds prose in .html, .txt or .md. Every method that calibrates runs once for each
seed, on 32 rows of 256 tokens drawn with it. Files are evaluated on held-out text like the calibration text, and on the
prose: perplexity, KL divergence to the float model and top-1 agreement at accuracy level 1. Runs whose results are in
the file already are skipped. The moments of a seed are computed once, by the first of jaxq's methods that needs them;
`best` computes its own.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from judge import Case, Judge, add_arguments, share_closed
from runs import RUNS, Run

WITHOUT_DATA = ("onnxruntime_rtn", "modelopt_rtn_dq", "jaxq_rtn_dq", "onnxruntime_hqq", "onnxruntime_k_quant",
                "jaxq_nvfp4_rtn")  # fmt: skip
JAXQ = ("awq_clip", "rtn_search", "gptq", "awq_gptq", "best")
ALL = (
    *("onnxruntime_rtn", "onnxruntime_hqq", "onnxruntime_k_quant"),
    *("modelopt_rtn_dq", "modelopt_awq_lite_cached", "modelopt_awq_full_cached"),
    *("jaxq_rtn_dq", "jaxq_awq_lite", "jaxq_awq_full", *(f"jaxq_{name}" for name in JAXQ)),
    *("jaxq_best_float8", "jaxq_best_4.5", "jaxq_nvfp4_rtn", "jaxq_nvfp4_best"),
)
_NVFP4 = ("dtype=nvfp4", "block_size=16")
OWN = {
    "onnxruntime_hqq": Run("onnxruntime_hqq", "peer", "onnxruntime", ""),
    "onnxruntime_k_quant": Run("onnxruntime_k_quant", "jaxq", "onnxruntime", "", options=("--block-size=32",)),
    "jaxq_best_float8": Run(
        "jaxq_best_float8", "jaxq", "jax", "", method="best", options=("block_size=32", "scale_dtype=float8")
    ),
    "jaxq_best_4.5": Run("jaxq_best_4.5", "jaxq", "jax", "", method="best", options=("method.bits_per_weight=4.5",)),
    "jaxq_nvfp4_rtn": Run("jaxq_nvfp4_rtn", "jaxq", "jax", "", method="rtn_dq", options=_NVFP4),
    "jaxq_nvfp4_best": Run("jaxq_nvfp4_best", "jaxq", "jax", "", method="best", options=_NVFP4),
}


def find_run(name: str) -> Run:
    """A run of the benchmark, or one of those that only this script has."""
    if name in OWN:
        return OWN[name]
    tool = name.partition("_")[0]
    return RUNS.get(name) or Run(name, "jaxq", "onnxruntime" if tool == "onnxruntime" else "jax", name)


def table(runs: dict[str, Any]) -> Iterator[str]:
    """Means over the seeds, with the greatest distance from the mean; seconds of the run on the least busy machine."""
    names = ("wall s", "CPU s", "search s", "others' CPU s", "MB", "text", "draws", "perplexity", "gap closed", "KL")
    yield f"| | {' | '.join(names)} | top-1 |"
    yield "|---" * (len(names) + 2) + "|"
    for name, seeds in runs.items():
        good = [made for made in seeds.values() if "quality" in made]
        for text in good[0]["quality"] if good else ():
            each = [made["quality"][text] for made in good]
            plain = _rounded(runs, name, text)
            closed = [share_closed(q["perplexity"], plain, q["float"]["perplexity"]) for q in each] if plain else []
            means = [_spread([q["perplexity"] for q in each]), _spread(closed)]
            means += [_spread([q["kl"] for q in each], 4), _spread([q["top1"] for q in each])]
            quiet = min(good, key=lambda made: made["others_cpu_seconds"])
            search = quiet.get("phases", {}).get("search")
            times = (quiet["wall_seconds"], quiet["cpu_seconds"], search, quiet["others_cpu_seconds"])
            cells = ["" if t is None else f"{t:.0f}" for t in times]
            cells += [f"{good[0]['file_mb']:.2f}", text, f"{len(good)}"]
            yield f"| {name} | {' | '.join(cells + means)} |"


def _rounded(runs: dict[str, Any], name: str, text: str) -> float | None:
    """Perplexity of plain rounding: of NVFP4 its own, else ModelOpt's."""
    rounded = runs.get("jaxq_nvfp4_rtn" if "nvfp4" in name else "modelopt_rtn_dq", {})
    return next((made["quality"][text]["perplexity"] for made in rounded.values() if "quality" in made), None)


def _spread(values: list[float], digits: int = 3) -> str:
    if not values:
        return ""
    mean = float(np.mean(values))
    return f"{mean:.{digits}f}" + (f" ± {max(abs(v - mean) for v in values):.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--methods", default=",".join(ALL))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    methods = args.methods.split(",")
    if unknown := [name for name in methods if name not in ALL]:
        sys.exit(f"--methods has {', '.join(map(repr, unknown))}: choose from {', '.join(ALL)}")
    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder:
        judge = Judge(args, Path(folder))
        for seed in range(args.seeds):
            for name in methods:
                if seed == 0 or name not in WITHOUT_DATA:
                    judge.judge(Case(find_run(name), seed, 32))
    order = sorted(judge.result["runs"].items(), key=lambda item: ALL.index(item[0]) if item[0] in ALL else len(ALL))
    text = "\n".join(table(dict(order)))
    args.out.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
