"""Jobs that belong together, so that what is shown of one is never mixed with another, and the parts of a figure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from matplotlib.figure import Figure, SubFigure

from metagame.report.results import JobResult, differences, tell_apart

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Group:
    """Jobs that differ in their method only.

    Attributes:
        results: their variants, with labels that tell them apart from each other.
        difference: what sets the group apart from others that are called the same, such as ``seed=1``; empty if
            no other group is called the same.
    """

    results: list[JobResult]
    difference: str

    @property
    def model(self) -> str:
        return self.results[0].model

    @property
    def name(self) -> str:
        """The model, and what sets the group apart from others of it."""
        return f"{self.model} ({self.difference})" if self.difference else self.model

    @property
    def sample_ids(self) -> list[str]:
        """Of all samples that were asked of a job, in order."""
        return list(dict.fromkeys(name for result in self.results for name in result.sample_ids))

    @property
    def done_ids(self) -> list[str]:
        """Of those that a job has finished."""
        done = {record.sample for result in self.results for record in result.done}
        return [name for name in self.sample_ids if name in done]


def by_setting(
    results: Sequence[JobResult], called: Callable[[JobResult], Hashable] = lambda result: result.model
) -> list[Group]:
    """The groups of one model, benchmark, seed and scale each, in order.

    Args:
        results: of any jobs.
        called: what a table or a figure calls the setting of a job without its difference.
    """
    found = grouped(results, lambda result: result.setting)
    namesakes = grouped(found.values(), lambda own: called(own[0]))
    groups = []
    for own in found.values():
        same = namesakes[called(own[0])]
        place = [each[0].setting for each in same].index(own[0].setting)
        difference = differences([each[0].circumstances for each in same])[place]
        groups.append(Group(tell_apart([replace(each, label=each.variant.label) for each in own]), difference))
    return groups


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key, in order."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def share_samples(groups: Sequence[Group]) -> bool:
    """Whether two groups of one model have a sample in common: then their difference is to be shown."""
    names = [(group.model, name) for group in groups for name in group.sample_ids]
    return len(set(names)) < len(names)


def stacked(figure: Figure, heights: Sequence[float]) -> list[Figure | SubFigure]:
    """Parts of a figure, one below the other; a single part is the figure itself."""
    if len(heights) == 1:
        return [figure]
    return list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
