"""jaxq.int4.quantize: every wrong argument gives one sentence, in the terms of the caller."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from jaxq.errors import JaxqError
from jaxq.int4 import quantize
from tests.support.int4_quantize import DATA, attention
from tests.support.running import save


def call(*arguments: Any, **named: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: quantize(*arguments, **named)


def nothing() -> Iterator[dict[str, np.ndarray]]:
    yield from ()


X = DATA[0]["x"]
REFUSED = {
    "method": (call(attention(), "awq"), "calibration_method is 'awq': choose one of rtn, rtn_dq, "),
    "parameter": (call(attention(), "rtn", awq_alpha=1), "quantize has no parameter 'awq_alpha': it takes awqlite_"),
    "no data": (call(attention()), "'awq_clip' needs calibration data: give calibration_data_reader="),
    "empty data": (call(attention(), "awq_lite", nothing()), "calibration_data_reader gives nothing"),
    "no reader": (call(attention(), "awq_lite", 3), "calibration_data_reader is of type int: give an iterable"),
    "no dictionary": (call(attention(), "awq_lite", [X]), "item 0 of calibration_data_reader is of type ndarray"),
    "missing input": (call(attention(), "awq_lite", [{}]), "the data has none for x"),
    "unknown input": (
        call(attention(), "awq_lite", [{"x": X, "z": X}]),
        "the data has z, and the model",
    ),
    "shape": (call(attention(), "awq_lite", [{"x": X[0]}]), "needs 3 dimensions"),
    "block size": (call(attention(), "rtn_dq", block_size=1), "block_size is 1:"),
    "columns": (call(attention(), "rtn_dq", awqclip_bsz_col=0), "awqclip_bsz_col is 0"),
    "alpha step": (call(attention(), "awq_lite", DATA, awqlite_alpha_step=2), "alpha_step is 2"),
    "no number": (
        call(attention(), "awq_lite", DATA, awqclip_alpha_min="a"),
        "awqclip_alpha_min is 'a': give",
    ),
    "table axis": (call(attention(), "rtn_dq", gather_quantize_axis=5), "gather_quantize_axis is 5"),
    "no table axis": (call(attention(), "rtn_dq", gather_quantize_axis="x"), "gather_quantize_axis is 'x'"),
    "column-major rtn": (call(attention(), "rtn", use_column_major=True), "use_column_major goes with rtn_dq"),
    "zero points in TensorRT": (call(attention(), "rtn_dq_trt", use_zero_point=True), "'trt' does not support uint4"),
    "layers": (call(attention(), "rtn_dq", layers_8bit="z"), "layers_8bit is 'z': no node has such a name"),
    "expression": (call(attention(), "rtn_dq", nodes_to_exclude=["("]), "'(', which is no regular expression"),
    "provider": (call(attention(), "awq_lite", DATA, ["npu"]), "calibration_eps has 'npu': choose from cpu"),
    "provider of rtn": (call(attention(), "rtn", None, ["gpu"]), "calibration_eps has 'gpu': choose from cpu"),
    "onnxruntime's name": (call(attention(), "rtn_dq", None, ["CPUExecutionProvider"]), "has 'CPUExecutionProvider'"),
    "no providers": (call(attention(), "rtn_dq", calibration_eps=None), "calibration_eps is None: give a list"),
    "empty providers": (call(attention(), "rtn_dq", calibration_eps=[]), "calibration_eps is empty"),
    "node": (call(attention(), "rtn_dq", nodes_to_exclude=[3]), "nodes_to_exclude has 3: give strings"),
    "nodes": (call(attention(), "rtn_dq", nodes_to_exclude=3), "nodes_to_exclude is 3: give a list of strings"),
    "no layers": (call(attention(), "rtn_dq", layers_8bit=3), "layers_8bit is 3: give a list of strings"),
    "block size as text": (call(attention(), "rtn_dq", block_size="128"), "block_size is '128': give an integer"),
    "item": (call(attention(), "awq_lite", [*DATA, {"x": X * np.nan}]), "item 3 of calibration_data_reader: the data"),
    "ragged": (call(attention(), "awq_lite", [{"x": [[1.0], [1.0, 2.0]]}]), "input 'x' is no array"),
    "nothing left": (call(attention(), "rtn_dq", nodes_to_exclude=[""]), "the model given has no weight that can be"),
    "path": (call("nowhere.onnx", "rtn_dq"), "model file 'nowhere.onnx' does not exist"),
    "no model": (call(3, "rtn_dq"), "onnx_path is of type int"),
    "bits": (call(attention(), "rtn_dq", precision_info={"q": 16}), "precision_info['q'] is 16: num_bits is 16"),
    "text for bits": (
        call(attention(), "rtn_dq", precision_info={"q": "8"}),
        "precision_info['q'] is '8': give a number",
    ),
    "bits in a list": (
        call(attention(), "rtn_dq", precision_info={"q": [8]}),
        "precision_info['q'] is [8]: give a number",
    ),
    "a list of bits": (call(attention(), "rtn_dq", precision_info=[8]), "precision_info is [8]: give a dictionary"),
    "unknown weight": (
        call(attention(), "rtn_dq", precision_info={"q": 8, "z": 8}),
        "precision_info names 'z': the model",
    ),
    "axis of a weight": (call(attention(), "rtn_dq", precision_info={"q": {"precision": 8, "axis": 1}}), "the axis 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named(case):
    wrong_call, sentence = REFUSED[case]
    with pytest.raises(JaxqError) as error:
        wrong_call()
    assert sentence in str(error.value)
    for word in ("npz", "fix the file", "source.onnx", "gather.axis"):  # of files and configurations
        assert word not in str(error.value)


def test_a_model_without_its_external_data_is_refused(tmp_path):
    model = onnx.load(save(attention(), tmp_path, external=True), load_external_data=False)
    with pytest.raises(JaxqError, match="is stored in a file beside the model, and a ModelProto has no path to it"):
        quantize(model, "rtn_dq")
