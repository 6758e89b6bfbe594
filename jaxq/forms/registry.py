"""The forms by name: which file writes each of them, and what it supports."""

from dataclasses import replace
from functools import partial

from jaxq.errors import JaxqError
from jaxq.forms import column_major, dq, matmulnbits, mx_standard, nvfp4_standard, portable, qdq, trt
from jaxq.forms.form import INTEGER_DTYPES, Form, notional_nbytes

_BLOCKED = (16, 32, 64, 128, 256)
_BLOCK_SIZES = (-1, *_BLOCKED)
_LEAST_BLOCK = 2  # a block of one number has nothing to share a scale with
_MX = {"mxfp8": (32,), "mxfp4": (32,)}

_FORMS = (
    Form("dq", dq.write, dict.fromkeys(INTEGER_DTYPES, _BLOCK_SIZES), _LEAST_BLOCK, gather_axes=(0, 1)),
    Form(
        "qdq",
        qdq.write,
        dict.fromkeys(("int4", "uint4", "int8", "uint8"), _BLOCK_SIZES),
        _LEAST_BLOCK,
        gather_axes=(0, 1),
        scaled=False,
        nbytes=notional_nbytes,
    ),
    Form(
        "column_major",
        column_major.write,
        dict.fromkeys(INTEGER_DTYPES, _BLOCK_SIZES),
        _LEAST_BLOCK,
        gather_axes=(0, 1),
    ),
    Form(
        "matmulnbits",
        partial(matmulnbits.write, accuracy_level=4),
        dict.fromkeys(INTEGER_DTYPES, _BLOCKED),
        opset=13,
        gather_axes=(1,),
        stacks=False,
        nbytes=matmulnbits.nbytes,
        domain=matmulnbits.DOMAIN,
        stores_accuracy_level=True,
    ),
    Form("nvfp4_standard", nvfp4_standard.write, {"nvfp4": (16,)}, opset=23, ir_version=11, runs=False),
    Form("mx_standard", mx_standard.write, _MX, opset=24, ir_version=12, runs=False),
    Form("portable", portable.write, {"nvfp4": (16,), **_MX}),
    Form(
        "trt",
        trt.write,
        {"int4": _BLOCK_SIZES, "int8": (-1,), "mxfp8": (32,)},
        gather_axes=(0, 1),
        stacks=False,
        negative_scales=False,
        casts=False,
        runs=False,
        domain=trt.DOMAIN,
    ),
    Form(
        "trt_qdq",
        trt.write_qdq,
        {"int4": _BLOCK_SIZES, "int8": (-1,)},
        gather_axes=(0, 1),
        stacks=False,
        scaled=False,
        nbytes=notional_nbytes,
        negative_scales=False,
        casts=False,
        runs=False,
        domain=trt.DOMAIN,
    ),
)

FORMS = {form.name: form for form in _FORMS}
"""Forms by name; ``qdq`` and ``trt_qdq`` store the float weight with a QuantizeLinear node, the others the codes."""


def find_form(name: str, accuracy_level: int = 4) -> Form:
    """The form of that name.

    Args:
        name: A key of `FORMS`.
        accuracy_level: How exactly onnxruntime computes products: 1 in float32, 4 with activations in 8 bits. Forms
            without `Form.stores_accuracy_level` ignore it.

    Raises:
        JaxqError: there is no such form, or the level is not 0 to 4.

    Example:
        >>> find_form("matmulnbits").block_sizes["int4"]
        (16, 32, 64, 128, 256)
    """
    if name not in FORMS:
        raise JaxqError(f"form is {name!r}: choose one of {', '.join(FORMS)}")
    if not 0 <= accuracy_level <= 4:
        raise JaxqError(f"accuracy_level is {accuracy_level}: give 0 to 4; 1 computes in float32, 4 in 8 bits")
    form = FORMS[name]
    if not form.stores_accuracy_level:
        return form
    return replace(form, write=partial(matmulnbits.write, accuracy_level=accuracy_level))
