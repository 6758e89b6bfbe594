"""Every function and class of ModelOpt's two pages: parameters, order, defaults, docstring, and a call."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from jaxq import int4, quant_utils

ALL_PARAMETERS: dict[Any, tuple[str, ...]] = {
    quant_utils: (
        "compute_e8m0(amax, weight_shape, quant_axis, block_size)",
        "dq_tensor(w, s, block_size, quantize_axis=0, zp=None)",
        "find_scales(w, block_size, quantize_axis=0, alpha=1.0, use_zero_point=False, num_bits=4)",
        "get_amax(weight, quant_axis, block_size)",
        "get_layer_axis(layer_info=None, name=None, default_axis=None)",
        "get_layer_block_size(layer_info=None, name=None, default_block_size=None)",
        "get_num_bits(precision_info=None, name=None)",
        "get_weights_scaling_factor(input, block_size, weights_scaling_factor_2)",
        "get_weights_scaling_factor_2(input)",
        "pack_float32_to_4bit_cpp_based(array, signed)",
        "pack_float32_to_4bit_optimized(array, signed)",
        "pack_weights_to_int4(weight)",
        "quant_tensor(w, block_size, quantize_axis=0, alpha=1.0, use_zero_point=False, num_bits=4)",
        "quantize(input, block_size, weights_scaling_factor, weights_scaling_factor_2)",
        "reshape_scales_for_per_channel_nodes(scales_map, block_size, precision_info=None)",
        "rtn(w, s, block_size, quantize_axis=0, zp=None, num_bits=4)",
        "update_block_size(num_bits, block_size, quantize_axis=0, w=None)",
    ),
    int4: (
        "AWQClipHelper(w, block_size, **kwargs)",
        "AWQLiteHelper(x, w, block_size, **kwargs)",
        "dq_tensor(w, s, block_size, quantize_axis=0, zp=None)",
        "find_scales(w, block_size, quantize_axis=0, alpha=1.0, use_zero_point=False, num_bits=4)",
        "get_act_scale(x)",
        "get_act_to_weight_map_and_act_to_wa_pack_map(wa_pack)",
        "get_scale(x_max, w_max, alpha, reduce_across_tp=False)",
        "get_weight_scale(weight, block_size=None)",
        "get_x_w_mean_for_subgraph(wa_pack, wa_pack_idx_list, augmented_onnx_path, x, block_size)",
        "quant_tensor(w, block_size, quantize_axis=0, alpha=1.0, use_zero_point=False, num_bits=4)",
        "quantize(onnx_path, calibration_method='awq_clip', calibration_data_reader=None, "
        "calibration_eps=['cuda:0', 'cpu'], use_external_data_format=True, use_zero_point=False, block_size=None, "
        "nodes_to_exclude=['/lm_head'], **kwargs)",
        "quantize_rtn(onnx_model, gemm_io_type=None, block_size=None, dq_only=False, nodes_to_exclude=None)",
        "rtn(w, s, block_size, quantize_axis=0, zp=None, num_bits=4)",
        "run_awq_scale_search_per_node(wa_pack, augmented_onnx_path, block_size, use_zero_point, session, awq_lite, "
        "inputs, tqdm_msg_append_str, enable_weight_clipping, enable_fast_path_using_high_sysram, output_data, "
        "clip_alphas, **kwargs)",
        "run_awq_scale_search_per_subgraph(wa_pack, augmented_onnx_path, block_size, use_zero_point, session, "
        "awq_lite, inputs, tqdm_msg_append_str, **kwargs)",
    ),
}
"""Signatures of the pages; for functions of both pages, the fuller one."""

MODULES = {"quant_utils": quant_utils, "int4": int4}


def rows() -> list[Any]:
    return [
        pytest.param(module, text.partition("(")[0], text.partition("(")[2].removesuffix(")"), id=f"{name}.{text[:40]}")
        for name, module in MODULES.items()
        for text in ALL_PARAMETERS[module]
    ]


def written(parameters: list[inspect.Parameter]) -> str:
    """Parameters without their annotations."""
    return ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters)


@pytest.mark.parametrize(("module", "name", "documented"), rows())
def test_parameters(module: Any, name: str, documented: str) -> None:
    parameters = list(inspect.signature(getattr(module, name)).parameters.values())
    assert written(parameters) == documented


@pytest.mark.parametrize(("module", "name", "documented"), rows())
def test_docstring(module: Any, name: str, documented: str) -> None:
    doc = getattr(module, name).__doc__
    args = doc.partition("Args:")[2]
    assert args
    for parameter in inspect.signature(getattr(module, name)).parameters:
        assert f"{parameter}: " in args
    assert ("Attributes:" if name.startswith("AWQ") else "Returns:") in doc
    assert "Example:" in doc


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_public_names_are_the_pages(module: Any) -> None:
    listed = {text.partition("(")[0] for text in ALL_PARAMETERS[module]}
    assert listed <= set(module.__all__)


W = np.arange(-32, 32, dtype=np.float32).reshape(16, 4) / 8
X = np.abs(W.T) + 1
S, ZP = np.full((2, 4), 0.5, np.float32), np.full((2, 4), 8, np.uint8)
CODES = np.arange(64).reshape(16, 4).astype(np.int8) % 8
MEAN = np.abs(W).mean(axis=1)
PACKS = [(TensorProto(name="x"), numpy_helper.from_array(W, "w"), False, 1)]


class Constant:
    """A session of which every value is `X`."""

    def run(self, output_names: list[str], input_feed: Any) -> list[np.ndarray]:
        return [X for _ in output_names]


@dataclass(frozen=True)
class Call:
    """A call on arrays; ``dtypes`` are those of the results."""

    module: str
    name: str
    arrays: tuple[np.ndarray, ...]
    dtypes: tuple[str, ...]
    rest: tuple[Any, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)

    def run(self, convert: Callable[[np.ndarray], Any]) -> list[Any]:
        function = getattr(MODULES[self.module], self.name)
        return jax.tree.leaves(function(*map(convert, self.arrays), *self.rest, **self.more))


CALLS = [
    Call("quant_utils", "compute_e8m0", (np.abs(W[:2]),), ("float32",), ((16, 4), 0, 8)),
    Call("quant_utils", "dq_tensor", (CODES, S), ("float32",), (8,), {"zp": ZP}),
    Call("quant_utils", "find_scales", (W,), ("float32", "uint8"), (8, 0, 1.0, True)),
    Call("quant_utils", "get_amax", (W,), ("float32",), (0, 8)),
    Call("quant_utils", "get_weights_scaling_factor", (W.T,), ("float32",), (8, 0.5)),
    Call("quant_utils", "get_weights_scaling_factor_2", (W,), ("float32",)),
    Call("quant_utils", "pack_float32_to_4bit_cpp_based", (W,), ("uint8",), (True,)),
    Call("quant_utils", "pack_float32_to_4bit_optimized", (W,), ("uint8",), (True,)),
    Call("quant_utils", "pack_weights_to_int4", (W,), ("uint8",)),
    Call("quant_utils", "quant_tensor", (W,), ("int8", "float32"), (8,)),
    Call("quant_utils", "quantize", (W.T,), ("float32",), (8, S.T, 0.5)),
    Call("quant_utils", "rtn", (W, S), ("uint8",), (8, 0, ZP)),
    Call("int4", "dq_tensor", (CODES, S), ("float32",), (8, ZP)),
    Call("int4", "find_scales", (W,), ("float32", "uint8"), (8, 1.0, True)),
    Call("int4", "get_act_scale", (X,), ("float32",)),
    Call("int4", "get_scale", (MEAN, MEAN), ("float32",), (0.5,)),
    Call("int4", "get_weight_scale", (W,), ("float32",), (8,)),
    Call("int4", "quant_tensor", (W,), ("uint8", "float32", "uint8"), (8, 1.0, True)),
    Call("int4", "rtn", (W, S), ("int8",), (8,)),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.module}.{call.name}")
def test_arrays_come_back_in_kind(call: Call) -> None:
    of_numpy, of_jax = call.run(lambda a: a), call.run(jnp.asarray)
    assert [str(a.dtype) for a in of_numpy] == [str(a.dtype) for a in of_jax] == list(call.dtypes)
    for mine, theirs in zip(of_numpy, of_jax, strict=True):
        assert isinstance(mine, np.ndarray | np.generic) and not isinstance(mine, jax.Array)
        assert not isinstance(mine, np.ndarray) or mine.flags.writeable
        assert isinstance(theirs, jax.Array)
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.module}.{call.name}")
def test_inside_the_callers_jit_and_vmap(call: Call) -> None:
    function = getattr(MODULES[call.module], call.name)

    def whole(*arrays: Any) -> list[Any]:
        return jax.tree.leaves(function(*arrays, *call.rest, **call.more))

    arrays = [jnp.asarray(a) for a in call.arrays]
    want = call.run(jnp.asarray)
    for got, single in zip(jax.jit(whole)(*arrays), want, strict=True):
        np.testing.assert_allclose(got, single, rtol=1e-6)
    stacked = [jnp.stack([a, a]) for a in arrays]
    for got, single in zip(jax.vmap(whole)(*stacked), want, strict=True):
        np.testing.assert_allclose(got, np.stack([single, single]), rtol=1e-6)


def test_the_rest_is_callable() -> None:
    """Functions that take no array, or packs; other tests check their results."""
    assert quant_utils.get_num_bits() == 4
    assert quant_utils.update_block_size(4, 32) == 32
    assert quant_utils.reshape_scales_for_per_channel_nodes({"w": S[:1]}, -1)["w"].shape == (4,)
    assert int4.get_act_to_weight_map_and_act_to_wa_pack_map(PACKS).act_to_wa_pack == {"x": [0]}
    for x in (X, jnp.asarray(X)):
        means = int4.get_x_w_mean_for_subgraph(PACKS, [0], "", x, 8)
        assert all(isinstance(mean, jax.Array) == isinstance(x, jax.Array) for mean in means)
    session = Constant()
    helpers, ratios = int4.run_awq_scale_search_per_node(
        PACKS, "", 8, False, session, [None], [{}], "", True, False, [], {}
    )
    assert isinstance(helpers[0], int4.AWQLiteHelper) and isinstance(ratios["w"], np.ndarray)
    helpers = int4.run_awq_scale_search_per_subgraph(PACKS, "", 8, False, session, [None], [{}], "")
    assert isinstance(helpers[0].best_scale, np.ndarray)


def test_importing_int4_is_light() -> None:
    code = "import sys, jaxq.int4; print(*(n for n in ('onnxruntime', 'hydra', 'rich') if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
