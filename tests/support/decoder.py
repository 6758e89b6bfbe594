"""A small decoder as exporters write them, with calibration data, for the tests of windows and calibration."""

from pathlib import Path

import numpy as np
import pytest

from jaxq.embedded import ModelConfig
from jaxq.embedded import build as embedded
from jaxq.embedded.weights import save_weights, weight_shapes
from jaxq.runtime.batches import Batch

CONFIG = ModelConfig(vocabulary=48, hidden=64, layers=3, heads=2, kv_heads=1, head_size=32, ffn=96)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    """A Llama-like decoder of three layers with random weights and an ``lm_head``."""
    folder = tmp_path_factory.mktemp("decoder")
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.standard_normal(shape) / 8 + (len(shape) == 1)).astype(np.float32)
        for name, shape in weight_shapes(CONFIG).items()
    }
    save_weights(folder / "weights.safetensors", CONFIG, weights)
    embedded.ir.save(embedded.build_model(folder / "weights.safetensors"), folder / "decoder.onnx")
    return folder / "decoder.onnx"


def decoder_batches(count: int = 3, fill: int = 0) -> list[Batch]:
    """Batches of two rows of 16 tokens; the second row ends with padding that holds the token ``fill``."""
    rng = np.random.default_rng(1)
    batches = []
    for i in range(count):
        ids = rng.integers(CONFIG.vocabulary, size=(2, 16))
        mask = np.ones_like(ids)
        mask[1, 9 + i :] = 0
        batches.append(Batch({"input_ids": np.where(mask, ids, fill), "attention_mask": mask}, keep=mask))
    return batches
