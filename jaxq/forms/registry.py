"""ONNX forms of quantized weights: one file a form, each with `write(graph, site, weight)`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.formats.registry import DTYPES
from jaxq.forms import column_major, dq, matmulnbits, mx_standard, nvfp4_standard, portable, qdq, trt
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.sites import Site


def copies_nbytes(site: Site, weight: StoredWeight) -> int:
    """Bytes of a copy of a weight for each node that reads it."""
    return weight.nbytes * len(site.nodes)


def notional_nbytes(site: Site, weight: StoredWeight) -> int:
    """Bytes that a weight would take: the file keeps the float one."""
    return weight.nbytes


@dataclass(frozen=True)
class Form:
    """What the pipeline must know of a form.

    Attributes:
        write: Puts a weight into the graph in place of a site's float one.
        block_sizes: Block sizes that it holds of each dtype; of those that it could say, the ones that runtimes compute
            without expanding the weight at every run. -1 is per channel.
        opset: The least opset that can say it; 0 for any.
        ir_version: The least version of the file format.
        gather_axes: Axes along which it can hold blocked tables of Gather.
        stacks: It holds stacks of matrices and kernels of Conv, not just matrices.
        scaled: It holds the codes, so that they can be of scaled or clipped weights; else the float weight.
        negative_scales: Its runtimes take scales below zero.
        casts: Scales may be narrower than the activations: its runtimes cast them once, when they load the file.
        runs: onnxruntime runs it on a CPU.
        nbytes: Bytes of codes and scales in the file; of float16 models at most 2 too many for each node.
        domain: The domain of its operators that are not ONNX's own, or "".
    """

    write: Callable[[ir.Graph, Site, StoredWeight], None]
    block_sizes: Mapping[str, tuple[int, ...]]
    opset: int = 21
    ir_version: int = 10
    gather_axes: tuple[int, ...] = ()
    stacks: bool = True
    scaled: bool = True
    negative_scales: bool = True
    casts: bool = True
    runs: bool = True
    nbytes: Callable[[Site, StoredWeight], int] = copies_nbytes
    domain: str = ""


_BLOCKED = (16, 32, 64, 128, 256)
_BLOCK_SIZES = (-1, *_BLOCKED)
INTEGER_DTYPES = tuple(name for name in DTYPES if "int" in name)
_MX = {"mxfp8": (32,), "mxfp4": (32,)}

FORMS = {
    "dq": Form(dq.write, dict.fromkeys(INTEGER_DTYPES, _BLOCK_SIZES), gather_axes=(0, 1)),
    "qdq": Form(
        qdq.write,
        dict.fromkeys(("int4", "uint4", "int8", "uint8"), _BLOCK_SIZES),
        gather_axes=(0, 1),
        scaled=False,
        nbytes=notional_nbytes,
    ),
    "column_major": Form(column_major.write, dict.fromkeys(INTEGER_DTYPES, _BLOCK_SIZES), gather_axes=(0, 1)),
    "matmulnbits": Form(
        partial(matmulnbits.write, accuracy_level=4),
        dict.fromkeys(INTEGER_DTYPES, _BLOCKED),
        opset=13,
        gather_axes=(1,),
        stacks=False,
        nbytes=matmulnbits.nbytes,
        domain=matmulnbits.DOMAIN,
    ),
    "nvfp4_standard": Form(nvfp4_standard.write, {"nvfp4": (16,)}, opset=23, ir_version=11, runs=False),
    "mx_standard": Form(mx_standard.write, _MX, opset=24, ir_version=12, runs=False),
    "portable": Form(portable.write, {"nvfp4": (16,), **_MX}),
    "trt": Form(
        trt.write,
        {"int4": _BLOCK_SIZES, "int8": (-1,), "mxfp8": (32,)},
        gather_axes=(0, 1),
        stacks=False,
        negative_scales=False,
        casts=False,
        runs=False,
        domain=trt.DOMAIN,
    ),
    "trt_qdq": Form(
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
}
"""Forms by name; ``qdq`` and ``trt_qdq`` hold the float weight with a QuantizeLinear node, the others the codes."""


def find_form(name: str, accuracy_level: int = 4) -> Form:
    """The form of that name.

    Args:
        name: A key of `FORMS`.
        accuracy_level: What ``matmulnbits`` tells onnxruntime of the products: 0 to 4; other forms have none.

    Raises:
        JaxqError: there is no such form, or no such level.
    """
    if name not in FORMS:
        raise JaxqError(f"form is {name!r}: choose one of {', '.join(FORMS)}")
    if not 0 <= accuracy_level <= 4:
        raise JaxqError(f"accuracy_level is {accuracy_level}: give 0 to 4; 1 computes in float32, 4 in 8 bits")
    if name == "matmulnbits":
        return replace(FORMS[name], write=partial(matmulnbits.write, accuracy_level=accuracy_level))
    return FORMS[name]
