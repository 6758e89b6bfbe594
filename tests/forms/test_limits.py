"""What no file can hold is refused before the model is looked at, with what can be done instead."""

from dataclasses import dataclass

import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import DTYPES, WeightFormat, make_format
from jaxq.forms.registry import FORMS
from jaxq.pipeline.job import Gather, Rule
from jaxq.runtime.batches import Batch
from tests.support.running import quantize

INT4, FULL = IntegerFormat(32), IntegerFormat(32, full_range=True)
NVFP4, MXFP8 = make_format("nvfp4", 16), make_format("mxfp8", 32)


@dataclass(frozen=True)
class Case:
    """A job that cannot be done, and words of the sentence that says so."""

    form: str
    message: str
    fmt: WeightFormat = INT4
    method: str = "rtn_dq"
    rules: tuple[Rule, ...] = ()
    gather: Gather | None = None
    accuracy_level: int = 4
    data: bool = False


CASES = {
    "scaled weights in qdq": Case(
        "qdq",
        "stores the float weights, but awq_lite scales them: take form=dq or column_major or matmulnbits or trt",
        method="awq_lite",
        data=True,
    ),
    "scaled weights in trt_qdq": Case(
        "trt_qdq", "stores the float weights, but awq_full scales them: take form=", method="awq_full", data=True
    ),
    "GPTQ's codes in qdq": Case(
        "qdq", "float weights, but gptq chooses other codes than the nearest: take form=dq", method="gptq", data=True
    ),
    "best in trt_qdq": Case("trt_qdq", "but best chooses other codes than the nearest", method="best", data=True),
    "block size": Case(
        "matmulnbits", "48: form 'matmulnbits' supports int4 in blocks of 16, 32, 64, 128, 256;", IntegerFormat(48)
    ),
    "blocks of one number": Case(
        "dq", "1: form 'dq' supports int4 in blocks of 2 rows or more or with -1, one block", IntegerFormat(1)
    ),
    "per channel in matmulnbits": Case(
        "matmulnbits", "block_size is -1: form 'matmulnbits' supports int4 in blocks of 16,", IntegerFormat(-1)
    ),
    "blocks of int8 in TensorRT": Case(
        "trt", "block_size is 32: form 'trt' supports int8 with -1, one block per channel", IntegerFormat(32, 8)
    ),
    "3 bits in qdq": Case(
        "qdq",
        "'qdq' does not support int3: it supports int4, uint4, int8, uint8; int3 goes with form=dq or column_major or",
        IntegerFormat(32, 3),
    ),
    "an odd block size too": Case(
        "portable", "it supports nvfp4, mxfp8, mxfp4; int4 goes with form=dq or qdq or column_major", IntegerFormat(48)
    ),
    "zero points in TensorRT": Case(
        "trt",
        "it supports int4, int8, mxfp8; uint4 goes with form=dq or qdq or column_major or matmulnbits",
        IntegerFormat(32, use_zero_point=True),
    ),
    "NVFP4 in dq": Case(
        "dq", "does not support nvfp4: it supports int2, .*; nvfp4 goes with form=nvfp4_standard or port", NVFP4
    ),
    "NVFP4 in TensorRT's own": Case("trt", "nvfp4 goes with form=nvfp4_standard or portable", NVFP4),
    "MXFP8 in NVFP4's": Case("nvfp4_standard", "mxfp8 goes with form=mx_standard or portable or trt", MXFP8),
    "integers in mx_standard": Case("mx_standard", "it supports mxfp8, mxfp4; int4 goes with form=dq or qdq or"),
    "negative scales in TensorRT": Case("trt", "supports positive scales only: leave method.full_range out", FULL),
    "a rule's dtype": Case(
        "portable",
        "'portable' does not support int8: it supports nvfp4, .*; no form supports nvfp4 and int8 in one",
        NVFP4,
        rules=(Rule(("*",), IntegerFormat(32, 8)),),
    ),
    "a rule's block size": Case(
        "matmulnbits",
        "mixed.block_size is -1: form 'matmulnbits' supports int8",
        rules=(Rule(("*",), IntegerFormat(-1, 8)),),
    ),
    "a rule's scales": Case("trt", "positive scales only", rules=(Rule(("*",), FULL),)),
    "tables in portable": Case(
        "portable",
        "tables of Gather blocked along axis 1; no form supports nvfp4 and tables of int4 blocked along axis 1 in one",
        NVFP4,
        gather=Gather(-1, INT4),
    ),
    "tables by columns in matmulnbits": Case(
        "matmulnbits",
        "int4 and tables of int4 blocked along axis 0 go with form=dq or qdq or column_major or trt or trt_qdq",
        gather=Gather(0, INT4),
    ),
    "a table's dtype": Case(
        "qdq",
        "does not support int3: .*; int4 and tables of int3 blocked along axis 0 go with form=dq or column_major$",
        gather=Gather(0, IntegerFormat(32, 3)),
    ),
    "a table in NVFP4": Case(
        "dq", "no form supports int4 and tables of nvfp4 blocked along axis 1 in one file", gather=Gather(1, NVFP4)
    ),
    "a table in MXFP8": Case(
        "dq", "int4 and tables of mxfp8 blocked along axis 1 go with form=trt$", gather=Gather(1, MXFP8)
    ),
    "a table's block size": Case(
        "matmulnbits",
        "gather.block_size is -1: form 'matmulnbits' supports int8",
        gather=Gather(1, IntegerFormat(-1, 8)),
    ),
    "a table's axis": Case("dq", "gather.axis is 2: a table has the axes 0, 1 and -1", gather=Gather(2, INT4)),
    "an unknown form": Case("gguf", "form is 'gguf': choose one of dq, qdq, column_major, matmulnbits"),
    "an unknown method": Case("dq", "method.name is 'hqq': choose one of", method="hqq"),
    "an accuracy level": Case("matmulnbits", "accuracy_level is 5: give 0 to 4", accuracy_level=5),
    "no data": Case("dq", "needs calibration data and there is none", method="awq_lite"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_cannot_be_written_is_refused_before_the_source_is_opened(case, tmp_path):
    batches = [Batch({"x": np.zeros((1, 1), np.float32)})] if case.data else []
    with pytest.raises(JaxqError, match=case.message):
        quantize(
            tmp_path / "absent.onnx", tmp_path / "out.onnx", case.method, batches, case.fmt, case.form,
            rules=case.rules, gather=case.gather, accuracy_level=case.accuracy_level,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_form_names_forms_for_each_dtype_that_it_cannot_hold(form, tmp_path):
    for dtype in set(DTYPES) - set(FORMS[form].block_sizes):
        fmt = make_format(dtype, {"nvfp4": 16}.get(dtype, 32))
        with pytest.raises(JaxqError, match=f"'{form}' does not support {dtype}: it supports") as caught:
            quantize(tmp_path / "absent.onnx", tmp_path / "out.onnx", fmt=fmt, form=form)
        named = str(caught.value).split("goes with form=")[1].split(" or ")
        assert named == [n for n, other in FORMS.items() if fmt.block_size in other.block_sizes.get(dtype, ())]


@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_holds_is_not_refused(form, tmp_path):
    for dtype, sizes in FORMS[form].block_sizes.items():
        for size in sizes:
            with pytest.raises(JaxqError, match="does not exist"):
                quantize(tmp_path / "absent.onnx", tmp_path / "out.onnx", fmt=make_format(dtype, size), form=form)
