"""The quantization methods: from weights and moments to codes, scales and what was chosen on the way."""

from dataclasses import dataclass

from jaxq.errors import JaxqError
from jaxq.formats.registry import WeightFormat


@dataclass(frozen=True)
class Method:
    """The steps that a method takes.

    Attributes:
        scales: It scales input channels; see `jaxq.methods.awq.search_scales`.
        clips: It chooses clip ratios, on the scaled weights and activations; see `jaxq.methods.awq.search_clip`.
        searches: It searches the scales of blocks, on the scaled weights and activations; see
            `jaxq.methods.block_scales.search_block_scales`. That looks at clip ratios too, which are not searched then.
        compensates: It chooses codes by GPTQ; see `jaxq.methods.gptq.gptq_round`.
        propagates: Moments are those of the model whose earlier weights are quantized already, and weights make up for
            what these have changed; see `jaxq.numerics.drift`.
    """

    scales: bool = False
    clips: bool = False
    searches: bool = False
    compensates: bool = False
    propagates: bool = False

    @property
    def needs_data(self) -> bool:
        """It searches on moments."""
        return self != ROUND_TO_NEAREST


ROUND_TO_NEAREST = Method()

METHODS = {
    "rtn": ROUND_TO_NEAREST,
    "rtn_dq": ROUND_TO_NEAREST,
    "nvfp4": ROUND_TO_NEAREST,
    "awq_lite": Method(scales=True),
    "awq_clip": Method(clips=True),
    "awq_full": Method(scales=True, clips=True),
    "rtn_search": Method(searches=True),
    "gptq": Method(searches=True, compensates=True),
    "awq_gptq": Method(scales=True, searches=True, compensates=True),
    "best": Method(searches=True, compensates=True, propagates=True),
}
"""Methods by name. ``rtn``, ``rtn_dq`` and ``nvfp4`` choose alike: ``conf`` brings another form or dtype with them."""


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        JaxqError: there is none.
    """
    if name not in METHODS:
        raise JaxqError(f"method.name is {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


@dataclass(frozen=True)
class MethodSpec:
    """A method with its knobs; hashable.

    Attributes:
        name: A key of `METHODS`.
        fmt: How weights are held, where no rule says otherwise.
        alpha_step: Step of AWQ's grid over alpha, in (0, 1].
        min_clip_ratio: Least clip ratio, in (0, 1].
        clip_step: Step of the grid over clip ratios, in (0, 1].
        search_columns: Columns on which AWQ's scales are compared, evenly spaced; 0 for all.
        batch_size: Candidates of the scale search that are evaluated at a time; more needs more memory.
        block_scales: Search the scales of blocks in every method that searches at all.
        damping: What is added to the diagonal of H for block scales and GPTQ, in units of its mean.
        descent_passes: Passes of coordinate descent after GPTQ.
        ridge: How much weights are held back from making up for drift: as if so many tokens had shown none. Over the
            number of tokens it is the ridge of `jaxq.methods.targets.corrected_target`.
        shrinkage: Tokens for which block scales and GPTQ hold the coupling of channels back; see
            `jaxq.numerics.moments.shrunk`.

    Raises:
        JaxqError: there is no such method.
    """

    name: str
    fmt: WeightFormat
    alpha_step: float = 0.1
    min_clip_ratio: float = 0.5
    clip_step: float = 0.05
    search_columns: int = 0
    batch_size: int = 1
    block_scales: bool = False
    damping: float = 0.05
    descent_passes: int = 0
    ridge: float = 4096.0
    shrinkage: float = 900.0

    def __post_init__(self) -> None:
        find_method(self.name)

    @property
    def steps(self) -> Method:
        """The steps that the method takes."""
        return METHODS[self.name]
