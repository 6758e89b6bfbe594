"""ONNX forms of quantized weights: one file a form, each with `write(graph, site, weight)`."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.formats import IntegerFormat
from jaxq.forms import dq, qdq
from jaxq.forms.weight import StoredWeight
from jaxq.graph import Site


@dataclass(frozen=True)
class Form:
    """What the pipeline must know of a form.

    Attributes:
        write: Puts a weight into the graph in place of a site's float one.
        block_sizes: Those that runtimes compute without expanding the weight at every run; -1 is per channel.
        opset: The least opset that can say it.
        ir_version: The least version of the file format.
        num_bits: Those that it can hold.
        scaled: It can hold weights that were scaled.
    """

    write: Callable[[ir.Graph, Site, StoredWeight], None]
    block_sizes: tuple[int, ...]
    opset: int
    ir_version: int
    num_bits: tuple[int, ...]
    scaled: bool = True


_BLOCK_SIZES = (-1, 16, 32, 64, 128, 256)

FORMS = {
    "dq": Form(dq.write, _BLOCK_SIZES, opset=21, ir_version=10, num_bits=(2, 3, 4, 5, 6, 7, 8)),
    "qdq": Form(qdq.write, _BLOCK_SIZES, opset=21, ir_version=10, num_bits=(4, 8), scaled=False),
}
"""Forms by name: ``dq`` holds the codes, ``qdq`` the float weight with a QuantizeLinear node."""


def find_form(name: str, fmt: IntegerFormat) -> Form:
    """The form of that name, if it can hold the format.

    Raises:
        JaxqError: there is none, or it cannot.
    """
    if name not in FORMS:
        raise JaxqError(f"form is {name!r}: choose one of {', '.join(FORMS)}")
    form = FORMS[name]
    if fmt.block_size not in form.block_sizes:
        sizes = ", ".join(str(b) for b in form.block_sizes if b > 0)
        raise JaxqError(
            f"block_size is {fmt.block_size}: onnxruntime computes the form {name!r} well with blocks of {sizes}, "
            "or -1 for one block per channel; choose one of these"
        )
    if fmt.num_bits not in form.num_bits:
        raise JaxqError(
            f"num_bits is {fmt.num_bits}: the form {name!r} holds {', '.join(map(str, form.num_bits))} bits"
        )
    return form
