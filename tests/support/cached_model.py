"""A small causal language model by hand, with a cache of its tokens' states or without."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.support.encoders import HIDDEN, IDS, save


def cached_model(
    path: Path, cache: bool = True, broken: bool = False, fixed: tuple[int, int] | None = None, nan: bool = False
) -> Path:
    """Logits from the sum of all token states so far; the cache holds these states.

    Args:
        path: Where it goes.
        cache: With ``past_key_values.0.key`` and ``present.0.key`` [batch, tokens, 32].
        broken: The cache that it returns is zero, so that earlier tokens are lost.
        fixed: Samples and tokens that it insists on.
        nan: The logits are NaN.
    """
    rng = np.random.default_rng(3)
    table = rng.normal(size=(IDS, HIDDEN)).astype(np.float32)
    inner, head = (rng.normal(size=shape).astype(np.float32) / 4 for shape in ((HIDDEN, HIDDEN), (HIDDEN, IDS)))
    head = head * np.float32(np.nan) if nan else head
    weights = {"table": table, "inner": inner, "lm_head": head, "axis": np.array(1, np.int64)}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x"])]
    inputs, outputs = [], []
    if cache:
        nodes.append(helper.make_node("Concat", ["past_key_values.0.key", "x"], ["all"], axis=1))
        nodes.append(helper.make_node("Sub", ["all", "all"] if broken else ["all", "zero"], ["present.0.key"]))
        weights["zero"] = np.zeros(1, np.float32)
        for values, name, tokens in ((inputs, "past_key_values.0.key", "past"), (outputs, "present.0.key", "total")):
            values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", tokens, HIDDEN]))
    nodes += [
        helper.make_node("CumSum", ["all" if cache else "x", "axis"], ["sums"]),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Neg", ["length"], ["begin"]),
        helper.make_node("Slice", ["sums", "begin", "end", "one"], ["new"]),
        helper.make_node("Tanh", ["new"], ["bounded"]),
        helper.make_node("MatMul", ["bounded", "inner"], ["y"]),
        helper.make_node("MatMul", ["y", "lm_head"], ["logits"]),
    ]
    weights |= {"end": np.array([2**60], np.int64), "one": np.array([1], np.int64)}
    shape = list(fixed or ("batch", "sequence"))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, IDS])
    return save(path, nodes, [ids, *inputs], [logits, *outputs], weights)
