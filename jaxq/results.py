"""What the pipeline reports: plain frozen records, ready for a file or a table."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from jaxq.capture import WindowRun
from jaxq.graph import Declined


@dataclass(frozen=True)
class Layer:
    """One quantized weight.

    Attributes:
        name, nodes: The weight and the nodes that multiply by it.
        activation: What they multiply; of a table of Gather its own name.
        c_in, c_out: Its shape; that of each matrix of a stack, or of each group of a Conv.
        dtype, block_size, scale_dtype: Its format.
        nbytes: Bytes in the file, scales included, of all copies; of forms that keep the float weight, those that its
            codes and scales would take.
        loss: Mean over calibration tokens of the squared output error, summed over columns and matrices; None without
            data.
        loss_rtn: The same for plain round to nearest in the same format.
        relative_output_error: ``sqrt(loss / output energy)``.
        sqnr_db: Weight energy over the energy of its error, in dB.
        alpha: AWQ's alpha, of several matrices the mean of those that are scaled; None without scaling.
        fold: Where the activation's division went: "vector" (a norm's weight), "weight" (the linear layer before),
            "Mul" (a new node), or "" without scaling.
        clip_mean, clip_min: Mean and least clip ratio of its blocks.
        clip_share: Share of blocks that are clipped.
        matrices: Number of its matrices: 1, or those of a stack or a Conv's groups.
        note: What is special about it (a table of Gather, in a subgraph), or what the method could not do to it; else
            "".
    """

    name: str
    nodes: tuple[str, ...]
    activation: str
    c_in: int
    c_out: int
    dtype: str
    block_size: int
    scale_dtype: str
    nbytes: int
    loss: float | None
    loss_rtn: float | None
    relative_output_error: float | None
    sqnr_db: float | None
    alpha: float | None
    fold: str
    clip_mean: float
    clip_min: float
    clip_share: float
    matrices: int = 1
    note: str = ""

    @property
    def size(self) -> int:
        """Number of its elements."""
        return self.matrices * self.c_in * self.c_out


@dataclass(frozen=True)
class Phase:
    """Seconds that a phase took, and the process's peak memory at its end."""

    name: str
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Outcome:
    """What `quantize_model` did.

    Attributes:
        layers: Quantized weights, in graph order.
        declined: Weights left alone, with reasons; those that were quantized already among them.
        unmatched: Exclude patterns that excluded nothing.
        told: Sentences about work of an earlier run that was used, or was not.
        windows: Runs of the calibration; empty if there was none or all moments were on disk.
        moments_found: Number of activations whose moments were on disk already.
        tokens: Real tokens of calibration.
        model_hash, data_hash: SHA-256 of the source file and of the calibration data ("" without).
        source_bytes, target_bytes: File sizes, external data included.
        quantized_bytes: Bytes that the quantized weights had in the source.
        weight_bytes: Bytes of all weights in the source.
        bits_per_weight: Mean over quantized weights, scales and zero points included.
        phases: Time and memory.
    """

    layers: tuple[Layer, ...]
    declined: tuple[Declined, ...]
    unmatched: tuple[str, ...]
    told: tuple[str, ...]
    windows: tuple[WindowRun, ...]
    moments_found: int
    tokens: int
    model_hash: str
    data_hash: str
    source_bytes: int
    target_bytes: int
    quantized_bytes: int
    weight_bytes: int
    bits_per_weight: float
    phases: tuple[Phase, ...]


@dataclass
class Clock:
    """Collects phases, in the order in which they first began."""

    phases: list[Phase] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a ``with`` block, added to what the phase took before; a phase within does not count for the outer."""
        if name not in [phase.name for phase in self.phases]:
            self.phases.append(Phase(name, 0.0, peak_mb()))
        start, others = perf_counter(), self._total()
        yield
        seconds = perf_counter() - start - (self._total() - others)
        own = [phase.name for phase in self.phases].index(name)
        self.phases[own] = Phase(name, self.phases[own].seconds + seconds, peak_mb())

    def _total(self) -> float:
        return sum(phase.seconds for phase in self.phases)


def peak_mb() -> float:
    """The most memory that this process has held so far, in MB (10^6 bytes); NaN where the system does not say."""
    if sys.platform == "win32":
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
