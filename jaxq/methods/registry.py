"""The quantization methods by name, and their settings."""

from dataclasses import dataclass

from jaxq.errors import JaxqError
from jaxq.formats.registry import WeightFormat


@dataclass(frozen=True)
class Method:
    """The steps of a method; one without any rounds to nearest.

    Attributes:
        scales: Search a scale for each input channel; see `jaxq.methods.awq.search_scales`.
        clips: Search clip ratios, on the scaled weights and activations; see `jaxq.methods.awq.search_clip`.
        searches: Search the scales of blocks, on the scaled weights and activations, instead of clip ratios; see
            `jaxq.methods.block_scales.search_block_scales`.
        compensates: Choose codes by GPTQ; see `jaxq.methods.gptq.gptq_round`.
        propagates: Take moments from the model whose earlier weights are quantized already, and correct weights for
            the drift that these cause; see `jaxq.numerics.drift`.
    """

    scales: bool = False
    clips: bool = False
    searches: bool = False
    compensates: bool = False
    propagates: bool = False

    @property
    def needs_data(self) -> bool:
        """The method needs moments, and so calibration data: every one but round to nearest."""
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
"""Methods by name. ``rtn``, ``rtn_dq`` and ``nvfp4`` differ in form and dtype only, which ``conf`` sets."""


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        JaxqError: no method has this name.
    """
    if name not in METHODS:
        raise JaxqError(f"method.name is {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


@dataclass(frozen=True)
class MethodSpec:
    """A method with its settings; hashable, so that it can be static under jit.

    Attributes:
        name: A key of `METHODS`.
        fmt: Format of the weights for which no rule names another.
        alpha_step: Step of AWQ's grid over alpha, in (0, 1].
        min_clip_ratio: Least clip ratio, in (0, 1].
        clip_step: Step of the grid over clip ratios, in (0, 1].
        search_columns: Number of evenly spaced columns on which AWQ's scales are compared; 0 for all, the default in
            Python. The command line takes 192 by default.
        batch_size: Candidates of the scale search that are evaluated at a time; more candidates need more memory.
        block_scales: Search the scales of blocks in every method that needs calibration data.
        damping: Number added to the diagonal of H for block scales and GPTQ, in units of the diagonal's mean.
        descent_passes: Passes of coordinate descent after GPTQ.
        ridge: Restraint on corrected targets: the number of tokens without drift that are assumed beside the real ones.
            Divided by the number of tokens it is the ridge of `jaxq.methods.targets.corrected_target`.
        shrinkage: Number of tokens with uncorrelated channels that are added to the moments for block scales and GPTQ;
            see `jaxq.numerics.moments.shrunk`.

    Raises:
        JaxqError: no method has the name ``name``.
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
        """The steps of the method."""
        return METHODS[self.name]
