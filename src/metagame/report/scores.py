"""The table of any benchmark: a row for each job, the mean of each score over its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metagame.contracts import numbers_among
from metagame.report.results import JobResult, failure_notes
from metagame.report.table import Column, Table

DECIDED = "A claim is decided if the mean of the differences, prompt by prompt, is larger than two standard errors."


def scores_table(results: list[JobResult], scale: str) -> Table:
    """Mean ± 2 standard errors of every score that is a number, over the samples that have it."""
    rows: list[dict] = []
    names: dict[str, None] = {}
    notes: list[str] = []
    for result in results:
        row = {"model": result.model, "method": result.label}
        for name, values in _numbers_by_name(result).items():
            names[name] = None
            row[name] = mean_cell(values)
            if len(values) < len(result.done):
                notes.append(
                    f"{result.label} of {result.model}: {name} is the mean over the {len(values)} of"
                    f" {len(result.done)} samples that have this number."
                )
        rows.append(row)
    benchmarks = ", ".join(dict.fromkeys(result.config.benchmark.name for result in results))
    return Table(
        title=f"{results[0].config.name}: scores of benchmark {benchmarks}",
        scale=scale,
        columns=[Column("model", "model", "text"), Column("method", "method", "text")]
        + [Column(name, name, "mean") for name in names],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=max(len(result.done) for result in results),
        notes=[*notes, *failure_notes(results)],
    )


def _numbers_by_name(result: JobResult) -> dict[str, list[float]]:
    """The scores that are numbers for some of the samples."""
    found: dict[str, list[float]] = {}
    for record in result.done:
        for name, value in numbers_among(record.scores).items():
            found.setdefault(name, []).append(value)
    return found


def mean_cell(values: list[float]) -> dict[str, float | int | None]:
    """A cell of type ``mean``: mean, two standard errors of it (None of a single value) and n."""
    two_se = float(2 * np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "two_se": two_se, "n": len(values)}


def rounded_mean_cell(values: list[float]) -> dict[str, float | int | None] | None:
    """As :func:`mean_cell`, of six decimals; None of no values.

    What was computed in another batch differs by the rounding of the model's numbers (in float32 in the last digits),
    and equal runs are to give equal bytes.
    """
    if not values:
        return None
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in mean_cell(values).items()}


def clustered_cell(values: Mapping[tuple[str, str], float]) -> dict[str, Any] | None:
    """A cell of type ``mean`` of scores that are not independent; None of no values.

    Scores of a cluster, such as one image in several games, may go up and down together; strata, such as the games, are
    there on purpose. With r the scores less their stratum's mean, N scores and K clusters, the standard error is
    sqrt(K / (K - 1) sum over clusters of (sum of r)^2) / N.

    Args:
        values: by (stratum, cluster).
    """
    if not values:
        return None
    strata: dict[str, list[float]] = {}
    for (stratum, _), value in values.items():
        strata.setdefault(stratum, []).append(value)
    sums: dict[str, float] = {}
    for (stratum, cluster), value in values.items():
        sums[cluster] = sums.get(cluster, 0.0) + value - float(np.mean(strata[stratum]))
    n, k = len(values), len(sums)
    error = np.sqrt(k / (k - 1) * np.square(list(sums.values())).sum()) / n if k > 1 else None
    mean = round(float(np.mean(list(values.values()))), 6)
    return {"mean": mean, "two_se": None if error is None else round(float(2 * error), 6), "n": n}


@dataclass(frozen=True)
class Difference:
    """What a claim compares.

    Attributes:
        name: of both sides, and where.
        cell: of type ``mean``: the paired difference, positive where the claim holds; None where it is not known.
    """

    name: str
    cell: dict[str, Any] | None

    @property
    def holds(self) -> bool | None:
        """Whether it is positive, or negative, by more than two standard errors; None: not decided."""
        if self.cell is None or self.cell["two_se"] is None or abs(self.cell["mean"]) <= self.cell["two_se"]:
            return None
        return self.cell["mean"] > 0

    @property
    def text(self) -> str:
        if self.cell is None:
            return f"{self.name}: not known"
        two_se = self.cell["two_se"]
        return f"{self.name}: {self.cell['mean']:+.3f} ± {'?' if two_se is None else format(two_se, '.3f')}"

    @property
    def margin(self) -> float:
        """How far above zero, in units of its error; the smallest decides a claim."""
        if self.cell is None:
            return 0.0
        return self.cell["mean"] / self.cell["two_se"] if self.cell["two_se"] else float(np.sign(self.cell["mean"]))


def decide(claim: str, differences: Sequence[Difference], published: str | None = None) -> dict[str, Any]:
    """A claim that all differences are positive, with the one that stands most against it.

    Args:
        claim: in words.
        differences: of the run at hand.
        published: what the published numbers answer, in words; None where there are none.
    """
    holds = all_hold([difference.holds for difference in differences])
    least = min(differences, key=lambda each: each.margin, default=None)
    difference = None if least is None else least.text
    return {"claim": claim, "holds": holds, "difference": difference, "published": published}


def all_hold(answers: list[bool | None]) -> bool | None:
    """Whether all hold; None if none is false but one is unknown, or if the list is empty."""
    if False in answers:
        return False
    return None if None in answers or not answers else True
