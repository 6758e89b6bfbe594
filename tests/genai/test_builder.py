"""The model builder itself, on Hugging Face folders with random weights: ``pytest -m slow tests/genai``."""

# pyright: reportMissingImports=false

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.genai.checks import check_folder, check_generation, check_run, run_jaxq
from tests.genai.folders import batch, logits, random_ids

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "experiments" / "genai" / "make_models.py"
WEIGHTS = {"llama": 10, "llama_tied": 10, "qwen3": 10, "gemma2": 10}


@pytest.fixture(scope="module", params=["llama-fp32", "llama-fp16", "llama_tied-fp32", "qwen3-fp32", "gemma2-fp32"])
def built(request, tmp_path_factory) -> Path:
    """The model's file in the builder's folder; the Hugging Face folder is beside that."""
    for package in ("torch", "transformers", "onnxruntime_genai"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("built")
    name, precision = request.param.split("-")
    command = [sys.executable, str(SCRIPT), str(out), name, "--precision", precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / request.param / "model.onnx"


def test_fed_as_transformers_feeds_it(built):
    """Logits of real tokens, with padding on either side, are those of transformers on each row alone."""
    import torch
    from transformers import AutoModelForCausalLM

    name, precision = built.parent.name.split("-")
    model = AutoModelForCausalLM.from_pretrained(built.parent.with_name(f"{name}-hf"), dtype=torch.float32).eval()
    ids = random_ids(3, 80)
    mask = np.ones_like(ids)
    mask[1, :9], mask[2, 70:] = 0, 0
    fed = batch(built, ids, mask)
    assert fed.keep is not None
    got = logits(built, fed)
    for row in range(3):
        with torch.no_grad():
            expected = model(torch.tensor(ids[row : row + 1, mask[row] > 0])).logits[0].numpy()
        difference = np.abs(got[row][fed.keep[row] > 0] - expected).max()
        assert difference < (0.05 if precision == "fp16" else 1e-3) * expected.std()


@pytest.mark.parametrize("form", ["dq", "matmulnbits"])
def test_quantized(built, form, jaxq, tmp_path):
    name, precision = built.parent.name.split("-")
    level = () if form == "dq" else ("form.accuracy_level=1",)
    done = run_jaxq(jaxq, built, tmp_path, f"form={form}", *level)
    weights = 14 if precision == "fp16" else WEIGHTS[name]  # queries, keys and values apart
    check_run(done, built, weights, tmp_path, 3e-2 if precision == "fp16" else 1e-4)
    check_folder(built, done.run_folder)
    if precision != "fp16":  # onnxruntime fails on the float model, too, at the second token
        check_generation(built, done.run_folder)
