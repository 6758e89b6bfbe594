"""Codes [c_in, c_out] and a DequantizeLinear node: standard ONNX, and what onnxruntime fuses into one product."""

import onnx_ir as ir

from jaxq.forms.nodes import dequantize, drop_weight, is_transposed, place
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.sites import Site

_LEAST_FUSED = 16


def is_fused(block_size: int) -> bool:
    """True if onnxruntime multiplies by codes in such blocks as they are: powers of two from 16 on, or one per channel.

    Of codes in other blocks it makes floats anew at every run. Measured with onnxruntime 1.32.

    Example:
        >>> [size for size in (-1, 8, 16, 24, 512) if is_fused(size)]
        [-1, 16, 512]
    """
    return block_size == -1 or (block_size >= _LEAST_FUSED and block_size.bit_count() == 1)


def write(graph: ir.Graph, site: Site, weight: StoredWeight) -> None:
    """Puts ``weight`` in place of the site's float weight; a copy for each node: onnxruntime fuses no shared one."""
    for node in site.nodes:
        transposed = is_transposed(site, node)
        place(site, node, dequantize(site, node, weight, transposed), transposed)
    drop_weight(site)
