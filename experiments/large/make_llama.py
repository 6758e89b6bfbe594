"""Write a Llama-shaped ONNX model of any size with random weights, and token ids to calibrate on.

    python experiments/large/make_llama.py OUT --size 8gb
    python experiments/large/make_llama.py OUT --size small --layers 16 --samples 64

Writes OUT/model.onnx, OUT/model.onnx.data and OUT/tokens.npz (`calib` [samples, 256]). One weight is in memory at a
time: the process takes under 1 GB however large the model is. The same arguments give the same bytes.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from llama import build_llama

from jaxq.embedded.weights import ModelConfig

SIZES = {
    "small": ModelConfig(vocabulary=8192, hidden=512, layers=4, heads=8, kv_heads=2, head_size=64, ffn=1408),
    "2.5gb": ModelConfig(vocabulary=32000, hidden=2048, layers=11, heads=32, kv_heads=8, head_size=64, ffn=5632),
    "8gb": ModelConfig(vocabulary=32000, hidden=2560, layers=30, heads=20, kv_heads=4, head_size=128, ffn=6912),
    # One layer, and a head and a table of today's vocabularies.
    "head-1024": ModelConfig(vocabulary=150000, hidden=1024, layers=1, heads=16, kv_heads=4, head_size=64, ffn=2816),
    "head-2048": ModelConfig(vocabulary=150000, hidden=2048, layers=1, heads=32, kv_heads=8, head_size=64, ffn=5632),
}
LENGTH = 256


def write_llama(folder: Path, config: ModelConfig, samples: int, seed: int = 0) -> None:
    """Writes the model, its external data and token ids."""
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(build_llama(config, seed), folder / "model.onnx", external_data="model.onnx.data")
    ids = np.random.default_rng(seed).integers(0, config.vocabulary, (samples, LENGTH))
    np.savez(folder / "tokens.npz", calib=ids)
    (folder / "shape.json").write_text(json.dumps(asdict(config)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--layers", type=int, help="another number of layers than the size's")
    parser.add_argument("--samples", type=int, default=8, help="rows of token ids")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = SIZES[args.size]
    write_llama(args.out, replace(config, layers=args.layers or config.layers), args.samples, args.seed)
    size = sum(path.stat().st_size for path in args.out.glob("model.onnx*"))
    print(f"{args.out}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
