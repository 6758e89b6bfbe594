"""Inspect an ONNX file: which weights are quantized, in which form, and how many bits a weight takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxq.files.model_file import data_files, load_model
from jaxq.graph.constants import FLOATS, all_initializers, static_shape
from jaxq.graph.prepare import tidy
from jaxq.readback.found_weight import FoundWeight
from jaxq.readback.weights import Unread, read_back


@dataclass(frozen=True)
class FloatWeight:
    """A tensor of floats that is not quantized."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Inspection:
    """The weights of a file, quantized or not.

    Attributes:
        path: The file.
        file_bytes: Its size, external data included.
        opset, ir_version: Versions of ONNX's operators and of the file format.
        domains: Other sets of operators, with their versions.
        weights: Quantized weights, in graph order.
        unread: What is quantized in a way that jaxq cannot read.
        floats: All other float tensors of more than one number, the largest first.
    """

    path: Path
    file_bytes: int
    opset: int
    ir_version: int
    domains: Mapping[str, int]
    weights: tuple[FoundWeight, ...]
    unread: tuple[Unread, ...]
    floats: tuple[FloatWeight, ...]

    @property
    def distinct(self) -> tuple[FoundWeight, ...]:
        """Quantized weights, those that nodes read in two ways once."""
        return tuple({w.tensors[0]: w for w in reversed(self.weights)}.values())[::-1]

    @property
    def quantized_size(self) -> int:
        """Number of quantized weights' elements."""
        return sum(w.size for w in self.distinct)

    @property
    def quantized_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(w.nbytes for w in self.distinct)

    @property
    def float_bytes(self) -> int:
        """Bytes of the tensors that are not quantized."""
        return sum(f.nbytes for f in self.floats)

    @property
    def bits_per_quantized_weight(self) -> float | None:
        """Codes, scales and zero points; None where nothing is quantized."""
        return 8 * self.quantized_bytes / self.quantized_size if self.weights else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in the file, quantized or not."""
        return sum(x.nbytes for x in (*self.unread, *self.floats)) + sum(w.file_nbytes for w in self.distinct)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits in the file for each element of all weights; None where there are none."""
        size = sum(x.size for x in (*self.distinct, *self.unread, *self.floats))
        return 8 * self.weight_bytes / size if size else None


def inspect_model(path: Path) -> Inspection:
    """Inspects any ONNX file: its quantized weights, and its tensors of floats.

    Args:
        path: The file; only weights that may be copies of each other are read.

    Raises:
        JaxqError: the file cannot be read, or is not an ONNX model.
    """
    model = load_model(path)
    file_bytes = sum(p.stat().st_size for p in (path, *data_files(path, model)))
    tidy(model)
    readback = read_back(model)
    floats = [
        FloatWeight(str(value.name), tensor.dtype.numpy().name, static_shape(tensor), tensor.size, tensor.nbytes)
        for value in all_initializers(model)
        if (tensor := value.const_value) is not None
        and tensor.dtype in FLOATS
        and tensor.size > 1
        and value not in readback.used
    ]
    return Inspection(
        path=path,
        file_bytes=file_bytes,
        opset=model.opset_imports.get("", 0),
        ir_version=model.ir_version,
        domains={name: version for name, version in model.opset_imports.items() if name},
        weights=readback.weights,
        unread=readback.unread,
        floats=tuple(sorted(floats, key=lambda f: -f.nbytes)),
    )


def to_json(inspection: Inspection) -> dict[str, object]:
    """An inspection as a JSON object; sizes in elements and bytes."""
    return {
        "path": str(inspection.path),
        "file_bytes": inspection.file_bytes,
        "opset": inspection.opset,
        "ir_version": inspection.ir_version,
        "domains": dict(inspection.domains),
        "quantized_weights": len(inspection.distinct),
        "quantized_size": inspection.quantized_size,
        "quantized_bytes": inspection.quantized_bytes,
        "bits_per_quantized_weight": inspection.bits_per_quantized_weight,
        "float_bytes": inspection.float_bytes,
        "weight_bytes": inspection.weight_bytes,
        "bits_per_weight": inspection.bits_per_weight,
        "weights": [_weight_json(w) for w in inspection.weights],
        "floats": [
            {"name": f.name, "dtype": f.dtype, "shape": list(f.shape), "nbytes": f.nbytes} for f in inspection.floats
        ],
        "not_understood": [{"name": u.name, "reason": u.reason, "nbytes": u.nbytes} for u in inspection.unread],
    }


def _weight_json(w: FoundWeight) -> dict[str, object]:
    names = ("name", "form", "dtype", "block_size", "axis", "transposed", "nbytes", "file_nbytes", "copies", "bits")
    facts = {name: getattr(w, name) for name in names}
    return facts | {"shape": list(w.shape), "nodes": list(w.nodes), "ops": list(w.ops)}
