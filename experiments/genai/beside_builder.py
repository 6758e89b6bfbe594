"""SmolLM2-135M with 4-bit weights: onnxruntime-genai's own int4 builder, and jaxq's preset deploy, in one run.

    python experiments/genai/beside_builder.py OUT [--untied]

Measures the size of the files, the speed of the first token and of the next ones in onnxruntime-genai, and the bits per
byte of held-out text of two kinds. Runs in turns, each figure is the median of five; the files are run as they are,
both at accuracy level 4. Needs what `smollm2.py` needs. Writes OUT/hf, OUT/float and OUT/int4 (the builder's),
OUT/deploy (jaxq's) and OUT/results.json.
"""

# pyright: reportMissingImports=false

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
from make_models import build
from rich.console import Console
from rich.table import Table
from smollm2 import make_huggingface, make_tokens
from tokenizers import Tokenizer

from jaxq.files.model_file import load_model
from jaxq.runtime.inputs import read_input_spec, to_batch

NAMES = ("float", "int4", "deploy")
REPEATS = 5
PROMPT, GENERATED = 128, 64
LICENSES = ("GPL-3", "LGPL-2.1", "Artistic")
PACKAGES = ("jaxq", "onnxruntime", "onnxruntime-genai", "transformers", "torch")


@dataclass(frozen=True)
class Row:
    """Figures of one folder.

    Attributes:
        name: Of the folder.
        megabytes: Of model.onnx and its data, in units of 10^6 bytes.
        prefill, decode: Tokens per second, prompt and next tokens; the median of the runs.
        bits_per_byte: By kind of text.
        divergence: KL divergence from the float model in nats per token, by kind of text.
    """

    name: str
    megabytes: float
    prefill: float
    decode: float
    bits_per_byte: dict[str, float]
    divergence: dict[str, float]


def untie(tied: Path, folder: Path) -> None:
    """The same model with a head of its own: a copy of the table."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.data.clone())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tied).save_pretrained(folder)


def make_files(out: Path, untied: bool) -> None:
    """The builder's float and int4 folders, and jaxq's; those that exist are kept."""
    if not (out / "hf").is_dir():
        make_huggingface(out / "hf")
        if untied:
            (out / "hf").rename(out / "hf-tied")
            untie(out / "hf-tied", out / "hf")
    for folder, precision in (("float", "fp32"), ("int4", "int4")):
        if not (out / folder / "model.onnx").is_file():
            build(out / "hf", out / folder, precision)
    make_tokens(out / "hf" / "tokenizer.json", out / "tokens.npz")
    if not (out / "deploy" / "model.onnx").is_file():
        command = [sys.executable, "-m", "jaxq", "quantize", out / "float", "--data", out / "tokens.npz"]
        subprocess.run([*command, "-o", out / "deploy", "eval.samples=0"], check=True)


def held_out(out: Path) -> dict[str, np.ndarray]:
    """Token ids [samples, 512]: Python's documentation, of which other pages calibrate, and licenses."""
    tokenizer = Tokenizer.from_file(str(out / "hf" / "tokenizer.json"))
    text = "".join(Path("/usr/share/common-licenses", name).read_text(encoding="utf-8") for name in LICENSES)
    ids = np.array(tokenizer.encode(text).ids, np.int64)
    starts = np.linspace(0, len(ids) - 513, 8).astype(int)
    return {
        "documentation": np.load(out / "tokens.npz")["eval"],
        "licenses": np.stack([ids[start : start + 512] for start in starts]),
    }


def log_probabilities(folder: Path, samples: np.ndarray) -> list[np.ndarray]:
    """Log-probabilities of the next token, [tokens, vocabulary] for each sample, float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    spec, rows = read_input_spec(load_model(folder / "model.onnx")), []
    for sample in samples:
        feeds = dict(to_batch({"input_ids": sample[None]}, spec).feeds)
        logits = np.asarray(session.run(["logits"], feeds)[0])[0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        rows.append((logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32))
    return rows


def bits_per_byte(samples: np.ndarray, rows: list[np.ndarray], tokenizer: Tokenizer) -> float:
    """Bits that the model needs for a byte of the text; the first token of each sample is given."""
    pairs = zip(samples, rows, strict=True)
    nats = sum(-float(row[np.arange(len(ids) - 1), ids[1:]].sum(dtype=np.float64)) for ids, row in pairs)
    texts = (tokenizer.decode(list(sample[1:]), skip_special_tokens=False) for sample in samples)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def divergence(reference: list[np.ndarray], rows: list[np.ndarray]) -> float:
    """Mean KL divergence from the reference, nats per token."""
    pairs = zip(reference, rows, strict=True)
    return float(np.mean([(np.exp(p.astype(np.float64)) * (p - q)).sum(-1).mean() for p, q in pairs]))


def speeds(folders: list[Path], prompt: np.ndarray) -> dict[str, tuple[float, float]]:
    """Tokens per second of the prompt and of the next tokens, by the folder's name; the folders take turns."""
    import onnxruntime_genai as genai

    models = {folder.name: genai.Model(str(folder)) for folder in folders}  # pyright: ignore
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(REPEATS):
        for name, model in models.items():
            parameters = genai.GeneratorParams(model)  # pyright: ignore
            length = len(prompt) + GENERATED + 1
            parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
            generator = genai.Generator(model, parameters)  # pyright: ignore
            start = time.perf_counter()
            generator.append_tokens(prompt.astype(np.int32))
            generator.generate_next_token()
            first = time.perf_counter()
            for _ in range(GENERATED - 1):
                generator.generate_next_token()
            end = time.perf_counter()
            measured[name].append((len(prompt) / (first - start), (GENERATED - 1) / (end - first)))
    return {n: (statistics.median(a for a, _ in m), statistics.median(b for _, b in m)) for n, m in measured.items()}


def measure(out: Path) -> list[Row]:
    """The figures of the three folders."""
    folders, samples = [out / name for name in NAMES], held_out(out)
    tokenizer = Tokenizer.from_file(str(out / "hf" / "tokenizer.json"))
    fast = speeds(folders, samples["documentation"][0][:PROMPT])
    bits: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    divergences: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for kind, ids in samples.items():
        reference = log_probabilities(out / "float", ids)
        for folder in folders:
            rows = reference if folder.name == "float" else log_probabilities(folder, ids)
            bits[folder.name][kind] = bits_per_byte(ids, rows, tokenizer)
            divergences[folder.name][kind] = divergence(reference, rows)
    sizes = {folder.name: sum(file.stat().st_size for file in folder.glob("model.onnx*")) / 1e6 for folder in folders}
    return [Row(name, sizes[name], *fast[name], bits[name], divergences[name]) for name in NAMES]


def show(rows: list[Row]) -> None:
    kinds = (f"bits/byte, {kind}" for kind in rows[0].bits_per_byte)
    table = Table("folder", "MB", "prefill, tokens/s", "decode, tokens/s", *kinds)
    for row in rows:
        bits = [f"{value:.4f}" for value in row.bits_per_byte.values()]
        table.add_row(row.name, f"{row.megabytes:.1f}", f"{row.prefill:.0f}", f"{row.decode:.0f}", *bits)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="onnxruntime-genai's int4 builder beside jaxq's preset deploy.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--untied", action="store_true", help="the model gets a head of its own")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    make_files(out, arguments.untied)
    rows = measure(out)
    machine = {"machine": platform.processor() or platform.machine(), "versions": {p: version(p) for p in PACKAGES}}
    record = machine | {"tied": not arguments.untied, "repeats": REPEATS, "rows": [asdict(row) for row in rows]}
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()
