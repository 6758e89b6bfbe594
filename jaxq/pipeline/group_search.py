"""Quantize groups of siblings, and reuse the results that a stopped run left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxq.formats.registry import WeightFormat
from jaxq.graph.sites import Group
from jaxq.methods.registry import MethodSpec
from jaxq.numerics.drift import Drift
from jaxq.numerics.moments import MomentsOf
from jaxq.pipeline.budget import Formats
from jaxq.pipeline.resume import ResultStore
from jaxq.search.group import quantize_group
from jaxq.search.result import GroupResult

WORKERS = 2
"""Groups searched at a time: one compiles or reads while the other computes."""


@dataclass(frozen=True, eq=False)
class GroupSearch:
    """The search of a run.

    Attributes:
        formats: The format of each site.
        method: The method.
        results: Where results are stored until the file is written.
        resumes: The run resumes a stopped one: results that lie in the store are used.
    """

    formats: Formats
    method: MethodSpec
    results: ResultStore
    resumes: bool

    def stored(self, group: Group) -> GroupResult | None:
        """The result that a stopped run left of a group, or None."""
        return self.results.get(group, self._formats(group)) if self.resumes else None

    def quantize(self, group: Group, moments: MomentsOf | None, drift: Drift | None = None) -> GroupResult:
        """A group's result: the one that a stopped run left, or a new one, which is stored."""
        if (result := self.stored(group)) is not None:
            return result
        return self.results.put(quantize_group(group, self._formats(group), moments, self.method, drift))

    def _formats(self, group: Group) -> list[WeightFormat]:
        return [self.formats[site] for site in group.sites]


def count_weights(groups: Sequence[Group]) -> int:
    """Weights of all groups: the steps of a progress bar."""
    return sum(len(group.sites) for group in groups)


def advance_by_weight(advance: Callable[[], None], group: Group) -> None:
    """Counts every weight of a group that is done."""
    for _ in group.sites:
        advance()
