"""Train the embedded model: a decoder of 4 M parameters on the documentation of the running Python.

    python experiments/embedded/train.py                  # train from the start, or go on from the checkpoint
    python experiments/embedded/train.py --export-only    # ship what the last checkpoint holds

Data: the train split of `jaxq.embedded.text` (0.70 M tokens). 4000 steps of 8 windows of 256 tokens are 12 epochs and
took 1.9 hours on two shared CPU cores; the losses, the exact time and the curve are in README.md and result.json beside
this file. A batch is a pure function of (seed, step), so a run that was stopped continues as if it had not been. For a
longer run on a GPU: the same command with --steps.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import platform
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from decoder import Weights, init_weights, mean_loss
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxq.embedded.text import SPLITS, documents, text_hash
from jaxq.embedded.tokens import encode, load_tokenizer, windows
from jaxq.embedded.weights import PACKAGED, ModelConfig, load_weights, save_weights

RESULT = Path(__file__).with_name("result.json")
README = Path(__file__).with_name("README.md")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the text is the only other input."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
    warmup: int = 100
    weight_decay: float = 0.1
    dropout: float = 0.1
    gradient_norm: float = 1.0


def make_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """AdamW after clipping; warm-up, then cosine decay to a twentieth; decay on matrices only."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, train.learning_rate, train.warmup, max(train.steps, train.warmup + 1), train.learning_rate / 20
    )
    adamw = optax.adamw(
        schedule, b2=0.98, weight_decay=train.weight_decay, mask=partial(jax.tree.map, lambda weight: weight.ndim > 1)
    )
    return optax.chain(optax.clip_by_global_norm(train.gradient_norm), adamw)


@partial(jax.jit, static_argnames=("config", "train"), donate_argnames=("weights", "state"))
def update(weights, state, ids, step, *, config: ModelConfig, train: TrainConfig):
    """One optimizer step: (weights, optimizer state, loss)."""
    key = jax.random.fold_in(jax.random.key(train.seed), step)
    loss, gradients = jax.value_and_grad(mean_loss)(weights, ids, config, key, train.dropout)
    updates, state = make_optimizer(train).update(gradients, state, weights)
    return optax.apply_updates(weights, updates), state, loss


def batch_of(stream: np.ndarray, step: int, train: TrainConfig, context: int) -> np.ndarray:
    """Token ids [batch, context] of a step: each epoch cuts the stream at another offset and shuffles the windows."""
    per_epoch = (stream.size - context) // context // train.batch
    epoch, place = divmod(step, per_epoch)
    generator = np.random.default_rng([train.seed, epoch])
    offset = generator.integers(context)
    starts = generator.permutation(per_epoch * train.batch)[place * train.batch : (place + 1) * train.batch]
    return stream[offset + context * starts[:, None] + np.arange(context)]


def split_loss(weights: Weights, ids: np.ndarray, config: ModelConfig, batch: int = 8) -> float:
    """Mean next-token cross-entropy in nats over all windows [windows, context] of a split."""
    losses = [
        float(evaluate(weights, part, config=config)) * len(part)
        for part in np.split(ids, range(batch, len(ids), batch))
    ]
    return sum(losses) / len(ids)


evaluate = jax.jit(mean_loss, static_argnames=("config",))


@dataclass(frozen=True)
class Progress:
    """A run so far; `curve` holds [step, train loss since the last entry, calib loss, eval loss]."""

    weights: Weights
    state: optax.OptState
    step: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[float, ...], ...] = ()


def identity(config: ModelConfig, train: TrainConfig) -> dict:
    """Facts that a checkpoint and the run that resumes it must share."""
    return {
        "model": dataclasses.asdict(config),
        "train": dataclasses.asdict(train),
        "text": {split: text_hash(documents(split)) for split in SPLITS},
        "tokenizer": hashlib.sha256(PACKAGED.with_name("tokenizer.json").read_bytes()).hexdigest(),
    }


def start(config: ModelConfig, train: TrainConfig) -> Progress:
    weights = init_weights(config, jax.random.key(train.seed))
    return Progress(weights, make_optimizer(train).init(weights))


def save_checkpoint(path: Path, progress: Progress, run: dict) -> None:
    """Write all that a run needs to continue; the file is whole at any time."""
    leaves = jax.tree.leaves((progress.weights, progress.state))
    facts = {"run": run, "step": progress.step, "seconds": progress.seconds, "curve": progress.curve}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    save_file(
        {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}, partial_path, {"facts": json.dumps(facts)}
    )
    os.replace(partial_path, path)


def load_checkpoint(path: Path, fresh: Progress, run: dict) -> Progress:
    """The progress in a checkpoint of the same run; `fresh` gives the structure."""
    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["facts"])
        leaves = [jnp.asarray(file.get_tensor(name)) for name in sorted(file.keys())]
    if facts["run"] != run:
        raise SystemExit(f"{path} belongs to a run with other settings or text: {facts['run']}; this run: {run}")
    weights, state = jax.tree.unflatten(jax.tree.structure((fresh.weights, fresh.state)), leaves)
    return Progress(weights, state, facts["step"], facts["seconds"], tuple(map(tuple, facts["curve"])))


def fit(progress: Progress, config: ModelConfig, train: TrainConfig, every: int, checkpoint: Path) -> Progress:
    """Train to the last step; every so many steps, measure the held-out losses, print them and write a checkpoint."""
    stream = encode(documents("train"), load_tokenizer())
    held_out = {split: windows(split, config.context) for split in ("calib", "eval")}
    run = identity(config, train)
    began, losses = time.perf_counter() - progress.seconds, []
    weights, state, curve = progress.weights, progress.state, progress.curve
    for step in range(progress.step, train.steps):
        ids = batch_of(stream, step, train, config.context)
        weights, state, loss = update(weights, state, ids, step, config=config, train=train)
        losses.append(float(loss))
        if (step + 1) % every == 0 or step + 1 == train.steps:
            measured = [split_loss(weights, ids, config) for ids in held_out.values()]
            curve += ((step + 1, round(sum(losses) / len(losses), 4), *(round(value, 4) for value in measured)),)
            losses = []
            progress = Progress(weights, state, step + 1, time.perf_counter() - began, curve)
            save_checkpoint(checkpoint, progress, run)
            print(f"{progress.seconds:6.0f} s  step {step + 1}: train, calib, eval {curve[-1][1:]}", flush=True)
    return progress


def export(progress: Progress, config: ModelConfig, train: TrainConfig) -> dict:
    """Write weights, result.json and the README's figures; the losses are those of the weights rounded to float16."""
    save_weights(PACKAGED, config, {name: np.asarray(weight) for name, weight in progress.weights.items()})
    weights = {name: jnp.asarray(weight) for name, weight in load_weights()[1].items()}
    losses = {split: split_loss(weights, windows(split, config.context), config) for split in ("calib", "eval")}
    packages = ("jax", "jaxlib", "numpy", "optax", "safetensors", "tokenizers")
    tokens = progress.step * train.batch * config.context
    result = identity(config, train) | {
        "text_tokens": {split: encode(documents(split), load_tokenizer()).size for split in SPLITS},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "device": {"kind": jax.devices()[0].device_kind, "cpu_cores": os.cpu_count()},
        "parameters": sum(weight.size for weight in weights.values()),
        "weights": hashlib.sha256(PACKAGED.read_bytes()).hexdigest(),
        "steps_done": progress.step,
        "seconds": round(progress.seconds),
        "tokens_seen": tokens,
        "tokens_per_second": round(tokens / max(progress.seconds, 1e-9)),
        "train_loss": progress.curve[-1][1] if progress.curve else None,
        "loss": {split: round(loss, 4) for split, loss in losses.items()},
        "perplexity": {split: round(math.exp(loss), 2) for split, loss in losses.items()},
        "curve_columns": ["step", "train_loss", "calib_loss", "eval_loss"],
        "curve": progress.curve,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    before, mark, rest = README.read_text(encoding="utf-8").partition("<!-- figures -->\n")
    after = rest.partition("<!-- end of figures -->")
    README.write_text(before + mark + figures(result) + "".join(after[1:]), encoding="utf-8")
    return result


def figures(result: dict) -> str:
    """The README's table of a result."""
    text = result["text_tokens"]
    loss, perplexity = result["loss"], result["perplexity"]
    device = result["device"]
    rows = {
        "parameters": f"{result['parameters']:,}",
        "steps": f"{result['steps_done']:,} of {result['train']['steps']:,} planned",
        "tokens seen": f"{result['tokens_seen']:,} ({result['tokens_seen'] / text['train']:.1f} epochs)",
        "time": f"{result['seconds']:,} s on {device['kind']}, {device['cpu_cores']} cores",
        "speed": f"{result['tokens_per_second']:,} tokens/s, measurements included",
        "train loss (with dropout)": f"{result['train_loss']:.3f}",
        "calib loss, perplexity": f"{loss['calib']:.3f}, {perplexity['calib']:.1f} ({text['calib']:,} tokens)",
        "eval loss, perplexity": f"{loss['eval']:.3f}, {perplexity['eval']:.1f} ({text['eval']:,} tokens)",
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8, help="windows of 256 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=125, help="steps between two measurements and checkpoints")
    parser.add_argument("--checkpoint", type=Path, default=Path("outputs/embedded/checkpoint.safetensors"))
    parser.add_argument("--export-only", action="store_true", help="train no further")
    options = parser.parse_args()
    config = ModelConfig()
    train = TrainConfig(options.steps, options.batch, options.learning_rate, options.seed)
    progress = start(config, train)
    if options.checkpoint.exists():
        progress = load_checkpoint(options.checkpoint, progress, identity(config, train))
    elif options.export_only:
        raise SystemExit(f"no checkpoint at {options.checkpoint}; train first")
    if not options.export_only:
        progress = fit(progress, config, train, options.every, options.checkpoint)
    print(json.dumps(export(progress, config, train)))


if __name__ == "__main__":
    main()
