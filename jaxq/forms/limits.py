"""What a form supports, and which forms support what another does not."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxq.errors import JaxqError
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.forms.registry import FORMS, INTEGER_DTYPES, Form
from jaxq.graph.sites import Site


@dataclass(frozen=True)
class Use:
    """Something that a form has to hold.

    Attributes:
        fmt: The format.
        option: What the user calls its block size.
        axis: The blocked axis of a table of Gather, 0 or 1; None for weights of products.
    """

    fmt: WeightFormat
    option: str = "block_size"
    axis: int | None = None

    def __str__(self) -> str:
        return self.fmt.dtype if self.axis is None else f"tables of {self.fmt.dtype} blocked along axis {self.axis}"


def check_supported(name: str, uses: Sequence[Use]) -> None:
    """Refuses what a form cannot hold.

    Args:
        name: A key of `FORMS`.
        uses: All that one file is to hold.

    Raises:
        JaxqError: it cannot; the sentence says what it holds, and which forms hold all of it.
    """
    for use in uses:
        _check_use(name, use, uses)


def _check_use(name: str, use: Use, uses: Sequence[Use]) -> None:
    form, fmt = FORMS[name], use.fmt
    sizes = form.block_sizes.get(fmt.dtype, ())
    if use.axis is not None and use.axis not in form.gather_axes:
        tables = f"tables of Gather blocked along axis {use.axis}"
        raise JaxqError(f"the form {name!r} cannot hold {tables}; {_who_supports(uses)}")
    if not sizes:
        what = ", ".join(form.block_sizes)
        raise JaxqError(f"the form {name!r} cannot hold {fmt.dtype}: it holds {what}; {_who_supports(uses)}")
    if fmt.block_size not in sizes:
        blocks = ", ".join(str(b) for b in sizes if b > 0)
        choices = [f"in blocks of {blocks}"] * bool(blocks) + ["with -1, one block per channel"] * (-1 in sizes)
        raise JaxqError(
            f"{use.option} is {fmt.block_size!r}: the form {name!r} holds {fmt.dtype} {' or '.join(choices)}; "
            "choose one of these"
        )
    if _has_negative_scales(fmt) and not form.negative_scales:
        raise JaxqError(
            f"the form {name!r} takes positive scales only: leave method.full_range out, or set it to false"
        )
    if _has_narrow_scales(fmt) and not form.casts:
        raise JaxqError(f"the form {name!r} has scales in the type of the activations: leave scale_dtype out")


def why_unsupported(name: str, fmt: WeightFormat, site: Site) -> str | None:
    """Why a form cannot hold a site's weight in a format that it holds; None where it can."""
    if not site.kernel and not site.lead:
        return None
    what = "a kernel of Conv" if site.kernel else "a stack of matrices"
    if not FORMS[name].stacks:
        able = [n for n, form in FORMS.items() if form.stacks and fmt.block_size in form.block_sizes.get(fmt.dtype, ())]
        return f"{what}: the form {name!r} holds matrices only" + f"; {', '.join(able)} hold it" * bool(able)
    if fmt.dtype == "nvfp4" and site.count > 1:
        return f"{what}, {site.count} in one: nvfp4 has one scale for the whole weight"
    return None


def alternatives(
    name: str, fmt: WeightFormat, full_range: bool = False, scale_dtype: str = "float32"
) -> tuple[WeightFormat, ...]:
    """What a form holds of the kind of a format, integers or floats; the format itself first.

    Integers of 4 bits with and without zero points in blocks of 32 to 128, of 16 where scales are float8, and of 8 bits
    without, per channel if that is held; all floats. Other integers take as many bytes as these, larger blocks save
    next to nothing, and smaller ones take more than they gain.

    Args:
        name: A key of `FORMS`.
        fmt: The format.
        full_range, scale_dtype: Of the other integers, see `make_format`.

    Example:
        >>> [other.dtype for other in alternatives("portable", make_format("nvfp4"))]
        ['nvfp4', 'mxfp8', 'mxfp4']
    """
    form = FORMS[name]
    if not isinstance(fmt, IntegerFormat):
        return tuple(
            dict.fromkeys([fmt, *(make_format(dtype) for dtype in form.block_sizes if dtype not in INTEGER_DTYPES)])
        )
    blocks = {16, 32, 64, 128} if scale_dtype == FLOAT8 else {32, 64, 128}
    fours = [(dtype, size) for dtype in ("int4", "uint4") for size in form.block_sizes.get(dtype, ()) if size in blocks]
    sizes = form.block_sizes.get("int8", ())
    eights = [("int8", size) for size in ((-1,) if -1 in sizes else sizes)]
    others = [make_format(dtype, size, full_range, scale_dtype) for dtype, size in [*fours, *eights]]
    return tuple(dict.fromkeys([fmt, *others]))


def _who_supports(uses: Sequence[Use]) -> str:
    able = [name for name, form in FORMS.items() if all(_supports(form, use, blocks=True) for use in uses)]
    able = able or [name for name, form in FORMS.items() if all(_supports(form, use, blocks=False) for use in uses)]
    everything = " and ".join(dict.fromkeys(map(str, uses)))
    if not able:
        return f"no form holds {everything} in one file"
    return f"{everything} {'go' if len(uses) > 1 else 'goes'} with form={' or '.join(able)}"


def _supports(form: Form, use: Use, blocks: bool) -> bool:
    sizes = form.block_sizes.get(use.fmt.dtype, ())
    fits = use.fmt.block_size in sizes if blocks else bool(sizes)
    tables = use.axis is None or use.axis in form.gather_axes
    casts = form.casts or not _has_narrow_scales(use.fmt)
    return fits and tables and casts and (form.negative_scales or not _has_negative_scales(use.fmt))


def _has_narrow_scales(fmt: WeightFormat) -> bool:
    return isinstance(fmt, IntegerFormat) and fmt.scale_dtype != "float32"


def _has_negative_scales(fmt: WeightFormat) -> bool:
    return isinstance(fmt, IntegerFormat) and fmt.full_range
