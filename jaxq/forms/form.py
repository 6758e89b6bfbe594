"""A form: how an ONNX file stores a quantized weight, and which formats and weights it supports."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import DTYPES, WeightFormat, make_format
from jaxq.forms.stored_weight import StoredWeight
from jaxq.graph.sites import Site

INTEGER_DTYPES = tuple(name for name in DTYPES if "int" in name)


@dataclass(frozen=True)
class Use:
    """A format that a file is asked to store.

    Attributes:
        fmt: The format.
        option: The name of the option that gives its block size, for errors.
        axis: The blocked axis of a table of Gather, 0 or 1; None for weights of products.
    """

    fmt: WeightFormat
    option: str = "block_size"
    axis: int | None = None

    def __str__(self) -> str:
        return self.fmt.dtype if self.axis is None else f"tables of {self.fmt.dtype} blocked along axis {self.axis}"


def copies_nbytes(site: Site, weight: StoredWeight) -> int:
    """Bytes of a copy of a weight for each node that reads it."""
    return weight.nbytes * len(site.nodes)


def notional_nbytes(site: Site, weight: StoredWeight) -> int:
    """Bytes that codes and scales would take, of forms that store the float weight instead."""
    return weight.nbytes


@dataclass(frozen=True, eq=False)
class Form:
    """How an ONNX file stores quantized weights. Its `repr` is the same in every process.

    Attributes:
        name: Its name on the command line, and the key in `jaxq.forms.registry.FORMS`.
        write: Puts a quantized weight into a graph in place of a site's float weight.
        block_sizes: Block sizes by dtype, -1 for one block per channel.
        least_block: Where given, integers can have blocks of every size from this one on; ``block_sizes`` then lists
            those that budgets choose among. None: the sizes of ``block_sizes`` alone.
        opset: The least opset of a file; 0 for any.
        ir_version: The least version of the file format.
        gather_axes: Axes along which tables of Gather can be blocked.
        stacks: Stacks of matrices and kernels of Conv are supported, not just matrices.
        scaled: The file stores codes, so that scaled or clipped weights are possible; else it stores the float weight.
        negative_scales: Its runtimes take scales below zero.
        casts: Scales may be narrower than the activations: its runtimes cast them once, when they load the file.
        runs: onnxruntime runs it on a CPU.
        nbytes: Bytes of codes and scales in the file; of float16 models at most 2 too many for each node.
        domain: The domain of its operators that are not ONNX's own, or "".
        stores_accuracy_level: Its operators store how exactly products are computed; see
            `jaxq.forms.registry.find_form`.
    """

    name: str
    write: Callable[[ir.Graph, Site, StoredWeight], None] = field(repr=False)
    block_sizes: Mapping[str, tuple[int, ...]]
    least_block: int | None = None
    opset: int = 21
    ir_version: int = 10
    gather_axes: tuple[int, ...] = ()
    stacks: bool = True
    scaled: bool = True
    negative_scales: bool = True
    casts: bool = True
    runs: bool = True
    nbytes: Callable[[Site, StoredWeight], int] = field(default=copies_nbytes, repr=False)
    domain: str = ""
    stores_accuracy_level: bool = False

    def check(self, uses: Sequence[Use], others: Iterable["Form"]) -> None:
        """Refuses formats that the form does not support.

        Args:
            uses: All formats that one file is to store.
            others: Forms that the error may name instead, usually ``FORMS.values()``.

        Raises:
            JaxqError: a format is not supported; the sentence says what is, and which forms support all of ``uses``.
        """
        for use in uses:
            if use.axis is not None and use.axis not in self.gather_axes:
                tables = f"tables of Gather blocked along axis {use.axis}"
                raise JaxqError(f"form {self.name!r} does not support {tables}; {_forms_for(uses, others)}")
            if use.fmt.dtype not in self.block_sizes:
                dtypes = ", ".join(self.block_sizes)
                raise JaxqError(
                    f"form {self.name!r} does not support {use.fmt.dtype}: it supports {dtypes}; "
                    f"{_forms_for(uses, others)}"
                )
            if not self._has_block_size(use.fmt):
                raise JaxqError(
                    f"{use.option} is {use.fmt.block_size!r}: form {self.name!r} supports {use.fmt.dtype} "
                    f"{self._block_size_choices(use.fmt.dtype)}; choose one of these"
                )
            if _has_negative_scales(use.fmt) and not self.negative_scales:
                raise JaxqError(
                    f"form {self.name!r} supports positive scales only: leave method.full_range out, or set it to false"
                )
            if _has_narrow_scales(use.fmt) and not self.casts:
                raise JaxqError(
                    f"form {self.name!r} stores scales in the type of the activations: leave scale_dtype out"
                )

    def _has_block_size(self, fmt: WeightFormat) -> bool:
        if fmt.block_size in self.block_sizes.get(fmt.dtype, ()):
            return True
        any_size = fmt.dtype in self.block_sizes and fmt.dtype in INTEGER_DTYPES
        return any_size and self.least_block is not None and fmt.block_size >= self.least_block

    def _block_size_choices(self, dtype: str) -> str:
        sizes = self.block_sizes[dtype]
        blocks = ", ".join(str(size) for size in sizes if size > 0)
        if self.least_block is not None and dtype in INTEGER_DTYPES:
            blocks = f"{self.least_block} rows or more"
        choices = [f"in blocks of {blocks}"] * bool(blocks) + ["with -1, one block per channel"] * (-1 in sizes)
        return " or ".join(choices)

    def supports(self, use: Use, any_block_size: bool = False) -> bool:
        """True if a file of this form can store a format; ``any_block_size`` asks for its dtype alone."""
        sizes = self.block_sizes.get(use.fmt.dtype, ())
        return (
            (bool(sizes) if any_block_size else self._has_block_size(use.fmt))
            and (use.axis is None or use.axis in self.gather_axes)
            and (self.casts or not _has_narrow_scales(use.fmt))
            and (self.negative_scales or not _has_negative_scales(use.fmt))
        )

    def why_unsupported(self, fmt: WeightFormat, site: Site, others: Iterable["Form"] = ()) -> str | None:
        """The reason why a site's weight cannot be stored, though its format is supported; None if it can.

        Args:
            fmt: A format that the form supports.
            site: The weight.
            others: Forms that the reason may name instead.
        """
        if not site.kernel and not site.lead:
            return None
        weight = "a kernel of Conv" if site.kernel else "a stack of matrices"
        if not self.stacks:
            names = [form.name for form in others if form.stacks and form.supports(Use(fmt))]
            advice = f"; {', '.join(names)} support{'s' * (len(names) == 1)} it" if names else ""
            return f"{weight}: form {self.name!r} supports matrices only{advice}"
        if fmt.dtype == "nvfp4" and site.count > 1:
            return f"{weight}, {site.count} in one: nvfp4 has one scale for the whole weight"
        return None

    def alternatives(
        self, fmt: WeightFormat, full_range: bool = False, scale_dtype: str = "float32"
    ) -> tuple[WeightFormat, ...]:
        """Formats among which a budget of bits may choose instead of ``fmt``: ``fmt`` itself, then others of its kind.

        For integers these are int4 and uint4 in blocks of 32, 64 and 128, and 16 where scales are float8, and int8, per
        channel if that is supported. Codes of other widths take as many bytes in a file as these; smaller blocks take
        more bytes than they gain, and larger ones save next to nothing. For floats these are all floats.

        Args:
            fmt: The format without a choice.
            full_range, scale_dtype: Scales of the other integers; see `jaxq.formats.registry.make_format`.

        Example:
            >>> from jaxq.forms.registry import find_form
            >>> [other.dtype for other in find_form("portable").alternatives(make_format("nvfp4"))]
            ['nvfp4', 'mxfp8', 'mxfp4']
        """
        if not isinstance(fmt, IntegerFormat):
            floats = [make_format(dtype) for dtype in self.block_sizes if dtype not in INTEGER_DTYPES]
            return tuple(dict.fromkeys([fmt, *floats]))
        blocks = {16, 32, 64, 128} if scale_dtype == FLOAT8 else {32, 64, 128}
        choices = [(d, size) for d in ("int4", "uint4") for size in self.block_sizes.get(d, ()) if size in blocks]
        sizes = self.block_sizes.get("int8", ())
        choices += [("int8", size) for size in ((-1,) if -1 in sizes else sizes)]
        others = [make_format(dtype, size, full_range, scale_dtype) for dtype, size in choices]
        return tuple(dict.fromkeys([fmt, *others]))


def _forms_for(uses: Sequence[Use], forms: Iterable[Form]) -> str:
    """The forms that support all uses; where none has the block sizes too, those that support the dtypes."""
    forms = list(forms)
    names = [form.name for form in forms if all(form.supports(use) for use in uses)]
    names = names or [form.name for form in forms if all(form.supports(use, any_block_size=True) for use in uses)]
    everything = " and ".join(dict.fromkeys(map(str, uses)))
    if not names:
        return f"no form supports {everything} in one file"
    return f"{everything} {'go' if len(uses) > 1 else 'goes'} with form={' or '.join(names)}"


def _has_narrow_scales(fmt: WeightFormat) -> bool:
    return isinstance(fmt, IntegerFormat) and fmt.scale_dtype != "float32"


def _has_negative_scales(fmt: WeightFormat) -> bool:
    return isinstance(fmt, IntegerFormat) and fmt.full_range
