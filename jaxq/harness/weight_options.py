"""Options on some weights that the user gives and that fit none of the model: refused, with what to write instead."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from jaxq.errors import JaxqError
from jaxq.graph.sites import Site, matches, names_of_weights
from jaxq.harness.option_effects import given_keys
from jaxq.pipeline.job import Job, check_job
from jaxq.pipeline.source import Source, open_source

_SHOWN = 3
"""Names in a sentence."""

_MIN_PART = 3
"""Letters of a part of a name that is worth proposing: numbers of layers are not."""

_WILDCARDS = "*?"


def check_weight_options(job: Job, overrides: Iterable[str], has_data: bool) -> None:
    """Refuses name patterns and options on tables that the user gives and that change nothing; presets may hold some.

    A pattern is compared with whole names, as in a shell. Part of a name is refused too, and never taken for the
    pattern with wildcards around it: that may fit more weights than are meant.

    Args:
        job: The job; its model is opened only where the user gives such options.
        overrides: The overrides of the run, as on the command line.
        has_data: There is calibration data.

    Raises:
        JaxqError: an option fits no weight, or none that it could change; the sentence says what to write instead.
    """
    patterns = {"method.exclude": job.exclude, "mixed.int8": [p for rule in job.rules for p in rule.patterns]}
    keys = given_keys(overrides)
    given = [(key, pattern) for key in keys for pattern in patterns.get(key, ())]
    on_tables = [key for key in keys if key.startswith("gather.")]
    if not given and not on_tables:
        return
    source = open_source(job, check_job(job, has_data))
    names = list(names_of_weights(source.model.graph))
    for key, pattern in given:
        if not any(fnmatchcase(name, pattern) for of_weight in names for name in of_weight):
            raise JaxqError(f"{key} has {pattern!r}, which fits no weight or node: {_instead(pattern, source, names)}")
        if key == "mixed.int8" and (reason := _without_effect(pattern, source, names)):
            raise JaxqError(f"{key} has {pattern!r}, which changes nothing: {reason}")
    if on_tables and not any(site.has_table for site in _sites(source)):
        raise JaxqError(f"{on_tables[0]} changes nothing: the model has no table of Gather that can be quantized")


def _instead(pattern: str, source: Source, names: Sequence[Sequence[str]]) -> str:
    """The pattern to write in place of one that fits nothing; else some names that there are."""
    bare = pattern.strip(_WILDCARDS)
    if fitting := _fitting(f"*{bare}*", names):
        more = f" and {len(fitting) - 1} more" if len(fitting) > 1 else ""
        return f"whole names are compared, so write '*{bare}*' for {fitting[0]!r}{more}"
    parts = {part.lower(): part for part in _parts(names)}
    if close := difflib.get_close_matches(bare.lower(), parts, n=1, cutoff=0.7):
        part = parts[close[0]]
        return f"did you mean '*{part}*', as in {_fitting(f'*{part}*', names)[0]!r}?"
    shown = ", ".join(repr(site.name) for site in _sites(source)[:_SHOWN])
    return f"names are such as {shown}; jaxq inspect --all lists them"


def _fitting(pattern: str, names: Sequence[Sequence[str]]) -> list[str]:
    """The first name of each weight that a pattern fits: a name that fits where there is one."""
    return [
        next(name for name in of_weight if fnmatchcase(name, pattern))
        for of_weight in names
        if any(fnmatchcase(name, pattern) for name in of_weight)
    ]


def _parts(names: Sequence[Sequence[str]]) -> Iterator[str]:
    """Parts of names between dots, slashes and colons."""
    for of_weight in names:
        for name in of_weight:
            yield from (part for part in re.split(r"[./:]+", name) if len(part) >= _MIN_PART)


def _without_effect(pattern: str, source: Source, names: Sequence[Sequence[str]]) -> str | None:
    """Why a pattern of a rule changes no weight although it fits one; None where it changes one."""
    fitting = [site for site in _sites(source) if matches(site.weight, pattern)]
    if any(not site.has_table for site in fitting):
        return None
    if fitting:
        return f"{fitting[0].name!r} is a table of Gather, whose dtype is gather.dtype"
    name = next(of_weight[0] for of_weight in names if any(fnmatchcase(n, pattern) for n in of_weight))
    reason = next((weight.reason for weight in source.skipped if weight.name == name), "it is not quantized")
    return f"{name!r} stays float: {reason}"


def _sites(source: Source) -> list[Site]:
    return [site for group in source.groups for site in group.sites]
