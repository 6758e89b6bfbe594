"""The number formats of weights behind one interface: integers, NVFP4 and MX floats."""

from jaxq.formats.base import BlockFormat, Grid, Quantized, Scales
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.microscaling import MxFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.formats.registry import DTYPES, WeightFormat, make_format

__all__ = [
    "DTYPES",
    "FLOAT8",
    "BlockFormat",
    "Grid",
    "IntegerFormat",
    "MxFormat",
    "Nvfp4Format",
    "Quantized",
    "Scales",
    "WeightFormat",
    "make_format",
]  # fmt: skip
