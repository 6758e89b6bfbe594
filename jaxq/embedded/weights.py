"""Configuration and weights of the embedded model: a safetensors file with the configuration as metadata."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from jaxq.errors import JaxqError

PACKAGED = Path(__file__).with_name("weights.safetensors")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a Llama-like decoder without biases, with an untied head."""

    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    ffn: int = 688
    context: int = 256
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by name; linear weights are [c_in, c_out], so that ``y = x @ w``."""
    q_size, kv_size = config.heads * config.head_size, config.kv_heads * config.head_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocabulary, config.hidden)}
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (config.hidden,),
            f"{prefix}.self_attn.q_proj.weight": (config.hidden, q_size),
            f"{prefix}.self_attn.k_proj.weight": (config.hidden, kv_size),
            f"{prefix}.self_attn.v_proj.weight": (config.hidden, kv_size),
            f"{prefix}.self_attn.o_proj.weight": (q_size, config.hidden),
            f"{prefix}.post_attention_layernorm.weight": (config.hidden,),
            f"{prefix}.mlp.gate_proj.weight": (config.hidden, config.ffn),
            f"{prefix}.mlp.up_proj.weight": (config.hidden, config.ffn),
            f"{prefix}.mlp.down_proj.weight": (config.ffn, config.hidden),
        }
    return shapes | {"model.norm.weight": (config.hidden,), "lm_head.weight": (config.hidden, config.vocabulary)}


def save_weights(path: str | Path, config: ModelConfig, weights: Mapping[str, np.ndarray]) -> None:
    """Write weights as float16, with the configuration as metadata; equal arguments give equal bytes."""
    halves = {name: np.ascontiguousarray(weights[name], dtype=np.float16) for name in weight_shapes(config)}
    metadata = {"config": json.dumps(dataclasses.asdict(config), sort_keys=True)}
    Path(path).write_bytes(save(halves, metadata))


def load_weights(path: str | Path = PACKAGED) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Configuration and weights of the embedded model.

    Args:
        path: File written by `save_weights`; the packaged file by default.

    Returns:
        The configuration, and float32 arrays by name in the shapes of `weight_shapes`.

    Raises:
        JaxqError: the file is missing, or its tensors do not fit its configuration.
    """
    if not Path(path).is_file():
        raise JaxqError(f"no weights of the embedded model at {path}: train them with experiments/embedded/train.py")
    with safe_open(str(path), framework="numpy") as file:
        config = ModelConfig(**json.loads(file.metadata()["config"]))
        weights = {name: file.get_tensor(name).astype(np.float32) for name in sorted(file.keys())}
    shapes, expected = {name: array.shape for name, array in weights.items()}, weight_shapes(config)
    if shapes != expected:
        wrong = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
        raise JaxqError(f"{path} has weights that do not fit the config {config}: {', '.join(wrong)}")
    return config, weights
