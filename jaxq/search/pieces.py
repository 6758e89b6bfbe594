"""Join a weight from its matrices, which are quantized one by one: those of a stack, or of a Conv's groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxq.formats.registry import WeightFormat
from jaxq.forms.stored_weight import Arrays, StoredWeight, pack
from jaxq.graph.sites import Site
from jaxq.methods.choose import Choice
from jaxq.methods.grids import IDENTITY
from jaxq.methods.measure import Errors
from jaxq.numerics.packing import pack_int4
from jaxq.search.result import Layer


@dataclass(frozen=True, eq=False)
class Piece:
    """One quantized matrix.

    Attributes:
        arrays: Codes [c_in, c_out], packed row by row where `rows_are_packed`, scales and zero points.
        s: Factor of the input channels [c_in].
        alpha: AWQ's alpha; `jaxq.methods.grids.IDENTITY` without scaling.
        clip_mean, clip_min, clip_share: Mean and least clip ratio, and share of clipped blocks.
        weight, weight_energy: Sums over the weights of the squared errors, and of the squares.
        output, output_rtn, output_energy: Sums over output columns of the mean squared error, of that of round to
            nearest, and of the mean square; None without moments.
        unseen: There was calibration data, and none of its tokens reached the matrix.
    """

    arrays: Arrays
    s: np.ndarray
    alpha: float
    clip_mean: float
    clip_min: float
    clip_share: float
    weight: float
    weight_energy: float
    output: float | None
    output_rtn: float | None
    output_energy: float | None
    unseen: bool

    @property
    def scaled(self) -> bool:
        """The activation has to be divided by ``s``."""
        return self.alpha != IDENTITY


def rows_are_packed(site: Site, fmt: WeightFormat) -> bool:
    """True if codes are packed matrix by matrix: rows are whole bytes, or there is one matrix."""
    return fmt.code_bits == 4 and (site.count == 1 or site.c_out % 2 == 0)


def piece(choice: Choice, errors: Errors, site: Site, columns: slice, fmt: WeightFormat, unseen: bool) -> Piece:
    """One quantized matrix, copied from the device.

    Args:
        choice, errors: Results for the concatenated columns of all siblings of one format.
        site: The weight.
        columns: The weight's columns among these.
        fmt: The weight's format.
        unseen: No token reached the matrix.
    """
    quantized = choice.quantized
    codes = quantized.q[:, columns]
    arrays = Arrays(
        codes=np.asarray(pack_int4(codes) if rows_are_packed(site, fmt) else codes),
        s=np.asarray(quantized.s[:, columns]),
        zp=None if quantized.zp is None else np.asarray(quantized.zp[:, columns]),
        s2=None if quantized.s2 is None else np.asarray(quantized.s2),
    )
    ratio = np.asarray(choice.clip_ratio[:, columns])
    return Piece(
        arrays=arrays,
        s=np.asarray(choice.s),
        alpha=float(choice.alpha),
        clip_mean=float(ratio.mean()),
        clip_min=float(ratio.min()),
        clip_share=float((ratio < 1).mean()),
        weight=_total(errors.weight, columns),
        weight_energy=_total(errors.weight_energy, columns),
        output=None if errors.output is None else _total(errors.output, columns),
        output_rtn=None if errors.output_rtn is None else _total(errors.output_rtn, columns),
        output_energy=None if errors.output_energy is None else _total(errors.output_energy, columns),
        unseen=unseen,
    )


def join_weight(pieces: Sequence[Piece], site: Site, fmt: WeightFormat) -> StoredWeight:
    """One weight [c_in, matrices * c_out] with the columns of all matrices."""
    matrices, shape = [p.arrays for p in pieces], (site.c_in, site.columns)
    fmt = fmt.of_weights(str(matrices[0].s.dtype))
    if len(matrices) == 1:
        return StoredWeight.of(matrices[0], shape, fmt)
    # Rows of whole bytes are concatenated as they are; other codes of 4 bits are packed only now.
    packed = rows_are_packed(site, fmt)
    codes = np.concatenate([a.codes.reshape(site.c_in, -1) for a in matrices], axis=1)
    joined = Arrays(
        codes=codes.ravel() if packed else pack(codes) if fmt.code_bits == 4 else codes,
        s=np.concatenate([a.s for a in matrices], axis=1),
        zp=None if matrices[0].zp is None else np.concatenate([a.zp for a in matrices if a.zp is not None], axis=1),
    )
    return StoredWeight.of(joined, shape, fmt)


def searched_layer(pieces: Sequence[Piece], site: Site, weight: StoredWeight, note: str) -> Layer:
    """The record of a searched weight: figures of its matrices are summed, and those of clip ratios averaged.

    Args:
        pieces: The weight's matrices.
        site: The weight.
        weight: The weight as the file stores it.
        note: Why the method did less to it than to others, or "".
    """
    loss, loss_rtn = _sum([p.output for p in pieces]), _sum([p.output_rtn for p in pieces])
    energy = _sum([p.output_energy for p in pieces])
    noise, weight_energy = sum(p.weight for p in pieces), sum(p.weight_energy for p in pieces)
    alphas = [p.alpha for p in pieces if p.scaled]
    return replace(
        Layer.planned(site, weight),
        loss=loss,
        loss_rtn=loss_rtn,
        relative_output_error=float(np.sqrt(loss / energy)) if loss is not None and energy else None,
        sqnr_db=float(10 * np.log10(weight_energy / noise)) if weight_energy and noise else None,
        alpha=round(float(np.mean(alphas)), 6) if alphas else None,
        clip_mean=float(np.mean([p.clip_mean for p in pieces])),
        clip_min=min(p.clip_min for p in pieces),
        clip_share=float(np.mean([p.clip_share for p in pieces])),
        note="; ".join(filter(None, [_unseen_note(pieces), note])),
    )


def _unseen_note(pieces: Sequence[Piece]) -> str:
    unseen = sum(p.unseen for p in pieces)
    whose = "" if len(pieces) == 1 else f"{unseen} of {len(pieces)} matrices "
    return f"{whose}saw no calibration token: rounded to nearest" if unseen else ""


def _total(per_column: jax.Array, columns: slice) -> float:
    return float(np.asarray(per_column)[columns].sum(dtype=np.float64))


def _sum(figures: Sequence[float | None]) -> float | None:
    """The sum of the figures that are known; None where none is."""
    known = [f for f in figures if f is not None]
    return sum(known) if known else None
