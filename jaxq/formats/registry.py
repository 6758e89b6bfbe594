"""Formats by name: integers, NVFP4 and MX floats."""

import re

from jaxq.errors import JaxqError
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.microscaling import MxFormat
from jaxq.formats.nvfp4 import Nvfp4Format
from jaxq.numerics import checks
from jaxq.numerics.integer import code_range

WeightFormat = IntegerFormat | Nvfp4Format | MxFormat
"""Any weight format; hashable, so that it can be static under jit."""

DTYPES = (*(f"{u}int{b}" for u in ("", "u") for b in range(2, 9)), "nvfp4", "mxfp8", "mxfp4")
"""Names of all formats."""


def make_format(
    dtype: str,
    block_size: int | None = None,
    full_range: bool = False,
    scale_dtype: str = "float32",
    option: str = "block_size",
) -> WeightFormat:
    """The format of that name.

    Args:
        dtype: One of `DTYPES`; "uint4" is 4 bits with a zero point.
        block_size: Rows a block, or -1 for one block per column. None: 16 for NVFP4, 32 for all others. NVFP4 and
            the MX formats have no other block size.
        full_range: See `IntegerFormat`; ignored by formats that are not symmetric integers.
        scale_dtype: See `IntegerFormat`. Formats of more than 4 bits get float16 in place of float8, which is too
            coarse for them.
        option: The user's name for the block size, for the error.

    Raises:
        JaxqError: no format has the name ``dtype``, or the format has another block size.

    Example:
        >>> make_format("uint4", 32)
        IntegerFormat(block_size=32, num_bits=4, use_zero_point=True, full_range=False, scale_dtype='float32')
    """
    if not isinstance(dtype, str):
        raise JaxqError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    if block_size is not None:
        checks.whole_number(option, block_size)
    if match := re.fullmatch(r"(u?)int([2-8])", dtype):
        fmt = IntegerFormat(
            block_size=32 if block_size is None else block_size,
            num_bits=int(match[2]),
            use_zero_point=bool(match[1]),
            full_range=full_range and not match[1],
            scale_dtype="float16" if scale_dtype == FLOAT8 and int(match[2]) > 4 else scale_dtype,
        )
        code_range(fmt.num_bits, fmt.use_zero_point)
        return fmt
    if dtype == "nvfp4":
        fmt = Nvfp4Format()
    elif dtype in ("mxfp8", "mxfp4"):
        fmt = MxFormat(dtype)
    else:
        raise JaxqError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    if block_size not in (None, fmt.block_size):
        raise JaxqError(f"{option} is {block_size}: {dtype} has blocks of {fmt.block_size}; leave {option} out")
    return fmt
