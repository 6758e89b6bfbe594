"""Check a quantized Llama of make_llama.py: onnxruntime runs it, and its weights are those of numpy's rounding.

    python experiments/large/check.py MODEL_DIR RUN_DIR          # RUN_DIR holds model.onnx of a run with method=rtn_dq
    python experiments/large/check.py MODEL_DIR RUN_DIR --awq    # of a run with awq_lite: only runs it

The weights are read from the files' bytes with numpy alone, and the float ones are made anew from their seed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from llama import make_weight

from jaxq.embedded.weights import ModelConfig, weight_shapes

LEVEL = "session.qdq_matmulnbits_accuracy_level"


def external(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """The bytes of a tensor, wherever they lie."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return np.frombuffer(tensor.raw_data, np.uint8)
    entry = {e.key: e.value for e in tensor.external_data}
    return np.fromfile(folder / entry["location"], np.uint8, int(entry["length"]), offset=int(entry["offset"]))


def stored(model: onnx.ModelProto, folder: Path, node_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [c_in, c_out] and scales [n_blocks, c_out] of the weight that a MatMul reads through DequantizeLinear."""
    nodes = {output: node for node in model.graph.node for output in node.output}
    (product,) = (node for node in model.graph.node if node.name == node_name)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    codes, scales = (tensors[name] for name in nodes[product.input[1]].input[:2])
    packed = external(codes, folder)
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).astype(np.int8)
    q = ((nibbles ^ 8) - 8).reshape(tuple(codes.dims))
    return q, external(scales, folder).view(np.float32).reshape(tuple(scales.dims))


def compare_layer(folder: Path, config: ModelConfig, layer: int, seed: int) -> dict[str, float]:
    """Share of codes, and of scales, that are not numpy's: max |block| / 7, and round to nearest even."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    differ = {"codes": 0.0, "scales": 0.0}
    shapes = {n: s for n, s in weight_shapes(config).items() if f".layers.{layer}." in n and len(s) == 2}
    for name, shape in shapes.items():
        w = make_weight(name, shape, config.layers, seed)
        q, s = stored(model, folder, f"/{name.removesuffix('.weight').replace('.', '/')}/MatMul".replace("s/", "s.", 1))
        blocks = w.reshape(len(s), -1, shape[1])
        expected_s = np.abs(blocks).max(axis=1) / np.float32(7)
        expected = np.clip(np.rint(blocks / expected_s[:, None]), -8, 7).reshape(shape)
        differ["codes"] += float((q != expected).mean()) / len(shapes)
        differ["scales"] += float((np.abs(s - expected_s) > 1e-6 * expected_s).mean()) / len(shapes)
    return differ


def logits(path: Path, ids: np.ndarray) -> np.ndarray:
    """Of one batch, products with 4-bit weights in float32."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(LEVEL, "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    return np.asarray(session.run(["logits"], feeds)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--awq", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = ModelConfig(**json.loads((args.model / "shape.json").read_text()))
    if not args.awq:
        for layer in sorted({0, config.layers // 2, config.layers - 1}):
            print(
                f"layer {layer}, share that differs from numpy's: {compare_layer(args.run, config, layer, args.seed)}"
            )
    ids = np.random.default_rng(1).integers(0, config.vocabulary, (1, 32))
    quantized = logits(args.run / "model.onnx", ids)
    exact = logits(args.model / "model.onnx", ids)
    error = np.sqrt(np.mean((quantized - exact) ** 2) / np.mean(exact**2))
    print(f"logits {list(quantized.shape)}, all finite: {np.isfinite(quantized).all()}, relative error {error:.4f}")


if __name__ == "__main__":
    main()
