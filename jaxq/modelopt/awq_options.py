"""The options that ModelOpt's AWQ classes and searches take by keyword, and the candidates that they describe."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from jaxq.errors import JaxqError
from jaxq.methods.grids import alpha_grid, ratio_grid


@dataclass(frozen=True)
class AWQOptions:
    """The candidates of AWQ's searches, under ModelOpt's names.

    Each class and search takes all of these names, and ignores those of other searches: ModelOpt's callers pass one
    dictionary to all of them.

    Attributes:
        awqlite_alpha_step: Step of the candidates for alpha, in [0.001, 1].
        awqclip_alpha_step: Step of the candidates for the clip ratio, in [0.001, 1].
        awqclip_alpha_min: Least clip ratio, in (0, 1].
        awqclip_bsz_col: Columns that the clip search takes at a time; None for all. It changes no result.
    """

    awqlite_alpha_step: float = 0.1
    awqclip_alpha_step: float = 0.05
    awqclip_alpha_min: float = 0.5
    awqclip_bsz_col: int | None = None


AWQ_OPTIONS = tuple(field.name for field in fields(AWQOptions))
"""Names of the options."""


def read_awq_options(keywords: Mapping[str, Any], *others: str) -> AWQOptions:
    """The options among keyword arguments.

    Args:
        keywords: Values by name.
        *others: Names that the caller takes beside the options.

    Raises:
        JaxqError: a name is neither an option nor one of the others, or an option is out of range.

    Example:
        >>> read_awq_options({"awqlite_alpha_step": 0.5, "precision_info": None}, "precision_info").awqlite_alpha_step
        0.5
    """
    names = (*AWQ_OPTIONS, *others)
    if unknown := [name for name in keywords if name not in names]:
        raise JaxqError(f"unknown option {', '.join(unknown)}: the options are {', '.join(names)}")
    given = {name: value for name, value in keywords.items() if name in AWQ_OPTIONS}
    for name, value in given.items():
        if name == "awqclip_bsz_col":
            _check_columns(value)
        elif isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise JaxqError(f"{name} is {value!r}: give a number")
    options = AWQOptions(**given)
    alpha_grid(float(options.awqlite_alpha_step))  # raises for a step out of range, as the next line does
    clip_candidates(options.awqclip_alpha_min, options.awqclip_alpha_step)
    return options


def _check_columns(columns: Any) -> None:
    if isinstance(columns, bool) or not isinstance(columns, int | np.integer) or columns < 1:
        raise JaxqError(f"awqclip_bsz_col is {columns!r}: give a positive number of columns")


def clip_candidates(min_alpha: float, alpha_step: float) -> list[float]:
    """ModelOpt's clip ratios: ``min_alpha``, ``min_alpha + alpha_step``, ... and 1.

    Args:
        min_alpha: Least ratio, in (0, 1].
        alpha_step: Step, in [0.001, 1].

    Raises:
        JaxqError: ``min_alpha`` or ``alpha_step`` is out of range.

    Example:
        >>> clip_candidates(0.5, 0.2)
        [0.5, 0.7, 0.9, 1.0]
    """
    ratio_grid(float(min_alpha), float(alpha_step))  # raises for numbers out of range
    return [*(round(float(a), 6) for a in np.arange(min_alpha, 1 - 1e-6, alpha_step)), 1.0]
