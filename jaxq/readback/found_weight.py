"""One quantized weight of a file; copies of a weight, one for each node that reads it, become one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.readback.constants import Place, array_at
from jaxq.readback.nodes import MALFORMED, array_of, bytes_of, shape_of


@dataclass(frozen=True, eq=False)
class FoundWeight:
    """One quantized weight of a file.

    Attributes:
        name: The float weight's name where the file was written by jaxq, or else the name of its codes.
        nodes, ops: Names of the nodes that read it, and their operators.
        form: A key of `jaxq.forms.FORMS`; INT8 of the TensorRT forms is standard ONNX, and reads as "dq" or "qdq".
        dtype: As far as the file says: codes of 3 bits that are stored as INT4 are "int4".
        block_size: -1 for one block per channel, 0 for one scale in all.
        axis: The axis, of the weight as it is stored, that is split into blocks or into channels.
        transposed: It is stored [c_out, c_in].
        shape: [c_in, c_out] of ``y = x W``, of a stack [matrices, c_in, c_out]; or a table's or a kernel's own shape.
        float_dtype: Type of the activations.
        nbytes: Bytes of codes, scales and zero points, copies included. For forms that store the float weight, the
            bytes that its codes would take.
        file_nbytes: Bytes in the file: those of the float weight where the file stores that.
        copies: How many times the file stores it: jaxq writes one copy for each node.
        places: Where it is, once for each time that nodes read it; the numbers are the same.
        tensors: Initializers that it is stored in: codes or the float weight, scales, zero points, the weight's scale.
        nodes_transpose: Nodes transpose what they read (Gemm with ``transB=1``).
    """

    name: str
    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    form: str
    dtype: str
    block_size: int
    axis: int
    transposed: bool
    shape: tuple[int, ...]
    float_dtype: ir.DataType
    nbytes: int
    file_nbytes: int
    copies: int
    places: tuple[Place, ...] = field(repr=False)
    tensors: tuple[ir.Value, ...] = field(repr=False)
    nodes_transpose: bool = field(default=False, repr=False)

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def bits(self) -> float:
        """Bits a weight: codes, scales and zero points."""
        return 8 * self.nbytes / self.size

    def dequantize(self) -> np.ndarray:
        """The weight that codes and scales stand for, of shape `shape`, rounded to the activations' type, in float32.

        Raises:
            JaxqError: codes and scales do not fit each other.
        """
        try:
            w = array_at(self.places[0]).astype(np.float32)
        except MALFORMED as error:
            raise JaxqError(f"weight {self.name!r} has codes and scales that do not fit: {error}") from error
        return w.T if self.nodes_transpose else w


def join_copies(weights: Sequence[FoundWeight]) -> list[FoundWeight]:
    """The weights, those of one name, layout and equal bytes joined into one, in the order of their first places."""
    joined: dict[object, list[FoundWeight]] = {}
    for w in weights:
        key = (w.name, w.form, w.dtype, w.block_size, w.axis, w.transposed, w.nodes_transpose, w.shape, w.float_dtype)
        different = joined.setdefault(key, [])
        for i, other in enumerate(different):
            if _same_bytes(w.tensors, other.tensors[: len(w.tensors)]):
                different[i] = _join(other, w)
                break
        else:
            different.append(w)
    order = {place: i for i, w in enumerate(weights) for place in w.places}
    return sorted((w for different in joined.values() for w in different), key=lambda w: order[w.places[0]])


def _join(first: FoundWeight, second: FoundWeight) -> FoundWeight:
    tensors = tuple(dict.fromkeys((*first.tensors, *second.tensors)))
    same_tensors = first.tensors[0] in second.tensors
    return replace(
        first,
        nodes=first.nodes + second.nodes,
        ops=first.ops + second.ops,
        nbytes=first.nbytes + (0 if same_tensors else second.nbytes),
        file_nbytes=bytes_of(tensors),
        copies=first.copies + (not same_tensors),
        places=first.places + second.places,
        tensors=tensors,
    )


def _same_bytes(some: Sequence[ir.Value], others: Sequence[ir.Value]) -> bool:
    if [(v.dtype, shape_of(v)) for v in some] != [(v.dtype, shape_of(v)) for v in others]:
        return False
    pairs = zip(some, others, strict=True)
    return all(a is b or array_of(a).tobytes() == array_of(b).tobytes() for a, b in pairs)
