"""Golden cases of AWQ's scales and searches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from golden_pool import Pool
from modelopt.onnx.quantization import int4  # pyright: ignore[reportMissingImports]
from onnx import numpy_helper


@dataclass(frozen=True)
class Named:
    """Stands for a graph tensor, of which the searches read only the name."""

    name: str


@dataclass(frozen=True)
class Constant:
    """Stands for a runtime session: every run gives the same activation."""

    x: np.ndarray

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.x for _ in names]


def activation(tokens: int, c_in: int, seed: int) -> np.ndarray:
    """Normal activations with a few channels 20 times larger, as LLMs have them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, c_in)).astype(np.float32)
    x[:, :: max(1, c_in // 3)] *= np.float32(20)
    return x


def weight(c_in: int, c_out: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(c_in, c_out)) * 0.05).astype(np.float32)


def strided(c_in: int, block_size: int) -> list[str]:
    return ["strided_blocks"] if block_size not in (-1, c_in) else []


def scale_cases(pool: Pool) -> list[dict]:
    """get_act_scale, get_weight_scale and get_scale."""
    cases = []
    x, dead = activation(12, 48, 1), activation(12, 48, 1)
    dead[:, 5] = 0
    for name, array in {"normal": x, "half": x.astype(np.float16), "dead_channel": dead}.items():
        mean = int4.get_act_scale(array)
        cases.append({"id": f"act_scale-{name}", "function": "get_act_scale", "x": pool.add(array),
                      "act_scale": pool.add(mean), "reasons": []})  # fmt: skip
    w = weight(48, 5, 2)
    w[:, 1] = 0
    for block_size in (16, 32, 48, None):
        scale = int4.get_weight_scale(w, block_size)
        cases.append({"id": f"weight_scale-{block_size}", "function": "get_weight_scale", "w": pool.add(w),
                      "parameters": {"block_size": block_size}, "weight_scale": pool.add(scale),
                      "reasons": [] if block_size is None else strided(48, block_size)})  # fmt: skip
    w_mean = int4.get_weight_scale(w, 48)
    for name, a in {"normal": int4.get_act_scale(x), "dead_channel": int4.get_act_scale(dead)}.items():
        for alpha in (0.0, 0.3, 0.5, 1.0):
            s = int4.get_scale(a, w_mean, alpha)
            cases.append({"id": f"scale-{name}-{alpha}", "function": "get_scale", "act_scale": pool.add(a),
                          "weight_scale": pool.add(w_mean), "parameters": {"alpha": alpha}, "scale": pool.add(s),
                          "reasons": []})  # fmt: skip
    return cases


def helper_case(pool: Pool) -> dict:
    """The helpers' candidates, which alpha wins a tie, and which options have no effect."""
    x, w = activation(12, 48, 1), weight(48, 5, 2)
    lite = int4.AWQLiteHelper(x, w, 16, awqlite_alpha_step=0.25)
    clip = int4.AWQClipHelper(w, 16)
    coarse = int4.AWQClipHelper(w, 16, awqclip_alpha_step=0.1, awqclip_alpha_min=0.7)
    clip.update_best_params()  # all losses are zero: a tie everywhere
    try:
        int4.AWQClipHelper(w, -1)
        per_channel = ""
    except Exception as error:
        per_channel = f"{type(error).__name__}: {error}"
    return {
        "id": "helpers",
        "lite_candidates": list(lite.loss),
        "lite_alpha_step": lite.alpha_step,
        "clip_candidates": clip.alphas,
        "clip_candidates_coarse": coarse.alphas,
        "clip_tie": pool.add(clip.best_alpha),
        "clip_per_channel_raises": per_channel,
        "reasons": ["step_ignored"],
    }


def search_case(pool: Pool, name: str, block_size: int, ci: int, use_zero_point: bool, clip: bool) -> dict:
    """run_awq_scale_search_per_node on one weight, with the activations handed over as its fast path has them."""
    x, w = activation(80, ci, 3), weight(ci, 6, 4)
    pack: list[Any] = [(Named("x"), numpy_helper.from_array(w, "w"), False, 1, "node")]
    helpers, clips = int4.run_awq_scale_search_per_node(
        pack, "", block_size, use_zero_point, None, [None], [], "", clip, True, [[x]], {}
    )
    q, s, zp = int4.quant_tensor(
        w * helpers[0].best_scale[:, None], block_size, alpha=clips.get("w", 1), use_zero_point=use_zero_point
    )
    return {
        "id": f"search-{name}",
        "function": "run_awq_scale_search_per_node",
        "parameters": {"block_size": block_size, "use_zero_point": use_zero_point, "clip": clip},
        "x": pool.add(x),
        "w": pool.add(w),
        "candidates": list(helpers[0].loss),
        "losses": [float(v) for v in helpers[0].loss.values()],
        "best_alpha": helpers[0].best_alpha,
        "best_scale": pool.add(helpers[0].best_scale),
        # flat, column by column
        "clip_alphas": pool.add(clips["w"]) if clip else None,
        "codes": pool.add(q),
        "s": pool.add(s),
        "zp": None if zp is None else pool.add(zp),
        "reasons": strided(ci, block_size) + (["unscaled_activations"] if clip else []),
    }


def siblings_case(pool: Pool, name: str, block_size: int, ci: int) -> dict:
    """run_awq_scale_search_per_subgraph on two weights that read the same activation."""
    x = activation(80, ci, 5)
    ws = [weight(ci, 6, 6), weight(ci, 4, 7)]
    pack: list[Any] = [
        (Named("x"), numpy_helper.from_array(w, f"w{i}"), False, 1, f"node{i}") for i, w in enumerate(ws)
    ]
    by_activation, shapes = int4.get_act_to_weight_map_and_act_to_wa_pack_map(pack)
    x_mean, w_mean = int4.get_x_w_mean_for_subgraph(pack, [0, 1], "", x, block_size)
    helpers = int4.run_awq_scale_search_per_subgraph(
        pack, by_activation, shapes, "", block_size, False, Constant(x), [None, None], [{}], ""
    )
    return {
        "id": f"siblings-{name}",
        "function": "run_awq_scale_search_per_subgraph",
        "parameters": {"block_size": block_size},
        "x": pool.add(x),
        "ws": [pool.add(w) for w in ws],
        "x_mean": pool.add(x_mean),
        "w_mean": pool.add(w_mean),
        "best_alpha": float(helpers[0].best_alpha),
        # float64 in ModelOpt, because its candidates are numpy scalars here; kept to float32's precision
        "best_scale": pool.add(np.asarray(helpers[0].best_scale, np.float32)),
        "reasons": strided(ci, block_size),
    }


def awq_cases(pool: Pool) -> list[dict]:
    return [
        *scale_cases(pool),
        helper_case(pool),
        search_case(pool, "one_block", 32, 32, use_zero_point=False, clip=False),
        search_case(pool, "one_block_zero_point", 32, 32, use_zero_point=True, clip=False),
        search_case(pool, "two_blocks", 16, 32, use_zero_point=False, clip=False),
        search_case(pool, "ragged", 16, 40, use_zero_point=False, clip=False),
        search_case(pool, "one_block_clip", 32, 32, use_zero_point=False, clip=True),
        siblings_case(pool, "one_block", 32, 32),
        siblings_case(pool, "two_blocks", 16, 32),
    ]
