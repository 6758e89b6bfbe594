"""Names and parameters beside the installed ModelOpt; skipped where there is none."""

import importlib
import inspect
from typing import Any

import pytest

from jaxq import int4, quant_utils
from jaxq.errors import JaxqError
from jaxq.modelopt.quantize_options import REFUSED

LAYER_FUNCTIONS = ("get_layer_axis", "get_layer_block_size")
CONSTANTS = ("INT4_MIN", "INT4_MAX", "UINT4_MIN", "UINT4_MAX", "CLIP_MIN")


@pytest.mark.parametrize("page", [quant_utils, int4], ids=["quant_utils", "int4"])
def test_values_of_constants(page):
    assert [getattr(page, name) for name in CONSTANTS] == [-8, 7, 0, 15, 1e-5]


def test_layer_records():
    info = {"w": {"precision": 8, "block_size": -1, "axis": 1}, "v": {}}
    assert [quant_utils.get_layer_axis(info, name, 0) for name in ("w", "v", "other", None)] == [1, 0, 0, 0]
    assert [quant_utils.get_layer_block_size(info, name, 64) for name in ("w", "v", "other", None)] == [-1, 64, 64, 64]
    wrong: Any = {"w": 8}
    for function in (quant_utils.get_layer_axis, quant_utils.get_layer_block_size):
        with pytest.raises(JaxqError, match=r"layer_info\['w'\] is 8: give a dictionary"):
            function(wrong, "w")


@pytest.mark.parametrize("page", ["quant_utils", "int4"])
def test_names_and_parameters_of_the_installed_version(page):
    theirs = pytest.importorskip(f"modelopt.onnx.quantization.{page}")
    mine = importlib.import_module(f"jaxq.{page}")
    for name in mine.__all__:
        assert hasattr(theirs, name), name
    for name in CONSTANTS:
        assert getattr(mine, name) == getattr(theirs, name)
    if page == "int4":
        listed = {*inspect.signature(mine.quantize).parameters, *REFUSED}
        assert set(inspect.signature(theirs.quantize).parameters) <= listed
    if page == "quant_utils":
        for name in LAYER_FUNCTIONS:
            assert list(inspect.signature(getattr(mine, name)).parameters) == list(
                inspect.signature(getattr(theirs, name)).parameters
            )
