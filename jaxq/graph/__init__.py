"""ONNX graphs: which weights can be quantized, which are siblings, and why the others are skipped."""

from jaxq.graph.activations import Activation, Patches
from jaxq.graph.opset import raise_opset
from jaxq.graph.prepare import prepare, tidy
from jaxq.graph.readers import Reader, find_readers
from jaxq.graph.sites import Group, Site, find_sites, sibling_groups
from jaxq.graph.skipped import Skipped
from jaxq.graph.tensors import in_memory, read_weight
from jaxq.graph.unused import remove_unused

__all__ = [
    "Activation", "Group", "Patches", "Reader", "Site", "Skipped", "find_readers", "find_sites", "in_memory",
    "prepare", "raise_opset", "read_weight", "remove_unused", "sibling_groups", "tidy",
]  # fmt: skip
